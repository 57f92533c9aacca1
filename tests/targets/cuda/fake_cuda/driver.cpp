// libcuda.so.1 for a machine without a GPU: as much of the driver's API as TVM's runtime and ours
// call. A module's code is the path of a library of emulated kernels. What the driver is to be like
// is in the environment: FAKE_CUDA_INIT (what cuInit returns), _CAPABILITY ("8.0"), _RELEASE.
#include <cuda.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tensor_map.h"

static int number(const char* name, int otherwise) {
  const char* text = getenv(name);
  return text ? atoi(text) : otherwise;
}

extern "C" {
CUresult cuInit(unsigned) { return CUresult(number("FAKE_CUDA_INIT", 0)); }
CUresult cuDeviceGetCount(int* count) { return *count = number("FAKE_CUDA_COUNT", 1), CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice* device, int) { return *device = 0, CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int* version) {
  return *version = number("FAKE_CUDA_RELEASE", 13000), CUDA_SUCCESS;
}
CUresult cuDeviceGetName(char* name, int length, CUdevice) {
  return snprintf(name, length, "Emulated GPU"), CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice) {
  const char* text = getenv("FAKE_CUDA_CAPABILITY");
  int major = 8, minor = 0;
  if (text) sscanf(text, "%d.%d", &major, &minor);
  *value = which == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? major : minor;
  return CUDA_SUCCESS;
}
CUresult cuGetErrorName(CUresult error, const char** name) {
  static char text[64];
  snprintf(text, sizeof text, "CUDA_ERROR_%d", int(error));
  return *name = text, CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult error, const char** text) { return cuGetErrorName(error, text); }
CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  void* library = dlopen((const char*)image, RTLD_NOW | RTLD_LOCAL);
  if (!library) return fprintf(stderr, "%s\n", dlerror()), CUDA_ERROR_INVALID_IMAGE;
  return *module = CUmodule(library), CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  char symbol[512];
  snprintf(symbol, sizeof symbol, "launch_%s", name);
  *function = CUfunction(dlsym((void*)module, symbol));
  return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
CUresult cuLaunchKernelEx(const CUlaunchConfig* c, CUfunction f, void** arguments, void**) {
  unsigned sizes[] = {c->gridDimX,  c->gridDimY,  c->gridDimZ,
                      c->blockDimX, c->blockDimY, c->blockDimZ};
  if (number("FAKE_CUDA_LAUNCH", 0)) return CUresult(number("FAKE_CUDA_LAUNCH", 0));
  auto launch = (int (*)(const unsigned*, size_t, void**))f;
  return launch(sizes, c->sharedMemBytes, arguments) ? CUDA_ERROR_LAUNCH_FAILED : CUDA_SUCCESS;
}
CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank,
                                void* base, const cuuint64_t* dims, const cuuint64_t* strides,
                                const cuuint32_t* box, const cuuint32_t*, CUtensorMapInterleave,
                                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                                CUtensorMapFloatOOBfill) {
  static_assert(sizeof(CUtensorMap) == 128);
  auto held = (EmulatedTensorMap*)map;
  bool is_taken = encode_tensor_map(held, type, rank, base, dims, strides, box, swizzle);
  return is_taken ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
}
