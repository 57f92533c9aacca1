// Tensor memory and tcgen05 of sm_100a: copies of scales, block-scaled products and commits are done
// in the order they were issued in, each at a random time, from what shared memory holds then. Until
// it is written tensor memory is NaN. Fences order nothing here.
#pragma once
#include <deque>

#include "asynchronous.h"

namespace emulator {

constexpr int TENSOR_LANES = 128, TENSOR_COLUMNS = 512;

struct TensorMemory {
  uint32_t words[TENSOR_LANES][TENSOR_COLUMNS];
  uint32_t first, columns;  // what is allocated

  uint32_t* at(uint32_t lane, uint32_t column) {
    if (lane >= TENSOR_LANES || column < first || column >= first + columns)
      fail("tensor memory is used where none is allocated");
    return &words[lane][column];
  }
};
inline TensorMemory tensor_memory;
inline std::deque<std::function<void()>> tensor_work;

inline void work_on_tensors() {
  while (!tensor_work.empty() && draw(3)) {
    auto next = tensor_work.front();
    tensor_work.pop_front();
    next();
    progress++;
  }
}

inline void begin_block() {
  begin_asynchronous();
  tensor_work.clear();
  memset(&tensor_memory, 0xFF, sizeof tensor_memory);
  tensor_memory.columns = 0;
  on_schedule = [] { land_some(), work_on_tensors(); };
}
inline void end_block() {
  if (!bulks.empty()) fail("a block ended with bulk copies under way");
  if (!tensor_work.empty()) fail("a block ended with products under way");
  if (tensor_memory.columns) fail("a block ended without giving tensor memory back");
}

inline void tensor_allocate(uint32_t target, uint32_t columns) {
  with_warp(nullptr, [=](void**) {
    if (columns < 32 || columns > TENSOR_COLUMNS || columns & (columns - 1))
      return fail("tensor memory is allocated in 32, 64, .. 512 columns");
    if (tensor_memory.columns) return fail("tensor memory is allocated twice");
    tensor_memory.first = draw((TENSOR_COLUMNS - columns) / 32 + 1) * 32;
    tensor_memory.columns = columns;
    memcpy(at_shared(target), &tensor_memory.first, 4);
  });
}
inline void tensor_free(uint32_t address, uint32_t columns) {
  with_warp(nullptr, [=](void**) {
    if (address != tensor_memory.first || columns != tensor_memory.columns)
      return fail("what is given back is not what was allocated");
    tensor_memory.columns = 0;
  });
}
inline void tensor_relinquish() {
  with_warp(nullptr, [](void**) {});
}
inline void tensor_fence() {}

inline void tensor_commit(uint32_t barrier) {
  tensor_work.push_back([=] { mbarrier_arrive(barrier); });
}

// A matrix descriptor (PTX ISA, "Shared memory descriptor" of tcgen05): rows of 128 swizzled bytes,
// or of 16 without a swizzle; eight rows lie together.
struct Matrix {
  uint32_t start, stride, row_bytes;
  bool is_swizzled;

  static Matrix of(uint64_t bits) {
    uint32_t swizzle = bits >> 61;
    if ((bits >> 46 & 3) != 1 || (swizzle != 0 && swizzle != 2) || bits >> 49 & 15)
      fail("a matrix descriptor that is not emulated");
    return {uint32_t(bits & 0x3FFF) << 4, uint32_t(bits >> 32 & 0x3FFF) << 4,
            swizzle ? 128u : 16u, swizzle == 2};
  }
  uint8_t byte(int row, int at) const {
    uint32_t address = start + row / 8 * stride + row % 8 * row_bytes + at;
    return *at_shared(is_swizzled ? swizzled(address) : address);
  }
};

inline void tensor_copy_32x128b(uint32_t target, uint64_t source) {
  tensor_work.push_back([=] {
    Matrix m = Matrix::of(source);
    if (m.is_swizzled) fail("scales are copied without a swizzle");
    for (int lane = 0; lane < TENSOR_LANES; lane++)
      for (int i = 0; i < 16; i++)
        ((uint8_t*)tensor_memory.at(lane, target + i / 4))[i % 4] = m.byte(lane % 32, i);
  });
}

inline double tensor_value(int bits, int format, const Matrix& m, int row, int k) {
  if (bits == 4) return e2m1::value(m.byte(row, k / 2) >> k % 2 * 4 & 15);
  uint8_t code = m.byte(row, k);
  return format ? e5m2::value(code) : e4m3::value(code);
}

// bits of a code, scales of a row (PTX ISA, "Instruction descriptor", mxf4 and mxf8f6f4 kinds). A
// row's scales are bytes of the column of its 32 rows, from the descriptor's scale factor id on.
template <int bits, int scales>
inline void tensor_multiply(uint32_t d, uint64_t a, uint64_t b, uint32_t how, uint32_t sa,
                            uint32_t sb, int add) {
  tensor_work.push_back([=] {
    Precise precise;
    constexpr int depth = bits == 4 ? 64 : 32;
    static double A[128][depth], B[256][depth];
    int rows = (how >> 24 & 31) * 16, columns = (how >> 17 & 63) * 8;
    if (rows != 128 || columns < 8 || columns > 256) fail("a shape that is not emulated");
    if (how & 0x8001E04F || (bits == 4 && (how >> 7 & 63) != 9))
      fail("an instruction descriptor that is not emulated");
    auto read = [=](double(*to)[depth], int count, uint64_t descriptor, int format, uint32_t at,
                    int first) {
      Matrix m = Matrix::of(descriptor);
      if (!m.is_swizzled) fail("operands are swizzled");
      for (int r = 0; r < count; r++) {
        auto* bytes = (uint8_t*)tensor_memory.at(r % 32 + 32 * draw(4), at + r / 32);
        for (int k = 0; k < depth; k++) {
          uint8_t byte = bytes[first + k / (depth / scales)];
          double scale = how >> 23 & 1 ? ue8m0::value(byte) : ue4m3::value(byte);
          to[r][k] = tensor_value(bits, format, m, r, k) * scale;
        }
      }
    };
    if ((how >> 29 & 3) + scales > 4 || (how >> 4 & 3) + scales > 4)
      fail("scale factors beyond their column");
    read(A, rows, a, how >> 7 & 7, sa, how >> 29 & 3);
    read(B, columns, b, how >> 10 & 7, sb, how >> 4 & 3);
    for (int r = 0; r < rows; r++)
      for (int c = 0; c < columns; c++) {
        uint32_t* place = tensor_memory.at(r, d + c);
        double sum = add ? real(*place) : 0;
        for (int k = 0; k < depth; k++) sum += A[r][k] * B[c][k];
        *place = bits_of(float(sum));
      }
  });
}

// Warp w sees lanes 32 (w % 4) and on.
template <int count, class... Operands>
inline void tensor_load(Operands&&... operands) {
  auto all = std::forward_as_tuple(operands...);
  uint32_t address = std::get<count>(all);
  float* d = &std::get<0>(all);
  if (&std::get<count - 1>(all) != d + count - 1) fail("sums are not side by side");
  uint32_t first = current->thread / 32 % 4 * 32;
  if (address >> 16 != first) fail("a warp reads lanes of tensor memory that are not its own");
  for (int i = 0; i < count; i++)
    d[i] = real(*tensor_memory.at(first + lane(), (address & 0xFFFF) + i));
  with_warp(nullptr, [](void**) {});
}

}  // namespace emulator
