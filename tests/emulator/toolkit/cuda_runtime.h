// As much of the CUDA runtime and its language as generated text uses; launches run at once.
#pragma once
#include <tuple>

#include "tensor_memory.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(x) __attribute__((aligned(x)))

#define threadIdx (emulator::current->index)
#define blockIdx (emulator::block_index)

inline dim3 &blockDim = emulator::block_size, &gridDim = emulator::grid_size;

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline void __syncthreads() {
  auto& size = emulator::block_size;
  emulator::barrier(0, size.x * size.y * size.z);
}
inline void __syncwarp(unsigned = ~0u) {
  emulator::with_what_there_is_of_the_warp(nullptr, [](void**) {});
}

template <class T, class F>
inline T emulated_shuffle(T value, F source) {
  struct Brought {
    T in, out;
  } b{value, value};
  F* from = &source;
  struct Both {
    Brought* b;
    F* from;
  } both{&b, from};
  emulator::with_what_there_is_of_the_warp(&both, [](void** all) {
    for (int t = 0, there = emulator::warp_threads(); t < there; t++) {
      auto* mine = (Both*)all[t];
      int source = (*mine->from)(t) & 31;
      mine->b->out = ((Both*)all[source < there ? source : t])->b->in;
    }
  });
  return b.out;
}
template <class T>
inline T __shfl_sync(unsigned, T value, int lane, int = 32) {
  return emulated_shuffle(value, [=](int) { return lane; });
}
template <class T>
inline T __shfl_xor_sync(unsigned, T value, int mask, int = 32) {
  return emulated_shuffle(value, [=](int t) { return t ^ mask; });
}
template <class T>
inline T __shfl_down_sync(unsigned, T value, int by, int = 32) {
  return emulated_shuffle(value, [=](int t) { return t + by < 32 ? t + by : t; });
}

inline int max(int a, int b) { return a > b ? a : b; }
inline int min(int a, int b) { return a < b ? a : b; }
inline uint32_t __cvta_generic_to_shared(const void* p) { return emulator::shared_address(p); }
inline uint32_t __float_as_uint(float f) { return emulator::bits_of(f); }
inline float __uint_as_float(uint32_t u) { return emulator::real(u); }
inline int __float_as_int(float f) { return int(emulator::bits_of(f)); }
inline float __int_as_float(int i) { return emulator::real(uint32_t(i)); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __expf(float x) { return std::exp(x); }
inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
  uint64_t both = uint64_t(y) << 32 | x;
  uint32_t r = 0;
  for (int i = 0; i < 4; i++) {
    uint32_t nibble = selector >> 4 * i & 15, byte = both >> 8 * (nibble & 7) & 255;
    if (nibble & 8) byte = byte & 128 ? 255 : 0;
    r |= byte << 8 * i;
  }
  return r;
}
template <class T>
inline T __ldg(const T* p) {
  return *p;
}

typedef int cudaError_t;
typedef void* cudaStream_t;
enum { cudaSuccess = 0, cudaErrorCudartUnloading = 4, cudaErrorLaunchFailure = 719 };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  void* attrs;
  unsigned numAttrs;
};
inline std::string emulated_error;
inline const char* cudaGetErrorString(cudaError_t) { return emulated_error.c_str(); }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
template <class F>
inline cudaError_t cudaFuncSetAttribute(F, int, int) {
  return cudaSuccess;
}
template <class... Params>
inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                                      Params... arguments) {
  try {
    emulator::run_grid(config->gridDim, config->blockDim, config->dynamicSmemBytes,
                       [=] { kernel(arguments...); });
  } catch (const std::exception& error) {
    emulated_error = error.what();
    return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}
