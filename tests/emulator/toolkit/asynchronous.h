// What runs beside the threads on sm_90a: mbarriers, bulk copies (TMA) and wgmma. A copy lands at a
// random time and its target is NaN until then; a product is computed when it is waited for, from
// what shared memory holds then, and its sums are NaN until then. Fences order nothing here.
#pragma once
#include <map>
#include <tuple>

#include "instructions.h"
#include "tensor_map.h"

struct CUtensorMap : EmulatedTensorMap {};

namespace emulator {

struct Mbarrier {
  int count, pending;
  long bytes;  // that copies have still to bring
  unsigned phase;

  void settle() {
    progress++;
    if (pending < 0) fail("more threads arrive at an mbarrier than it counts");
    if (pending || bytes) return;
    phase++, pending = count;
  }
};

struct Bulk {
  uint32_t target, barrier;
  long bytes;
  std::function<void()> land;
};

struct Product {  // one thread's part of a wgmma
  float* d;
  uint32_t a[4];
  uint64_t descriptor;
  int columns;
};

struct Products {
  std::vector<Product> issued, committed;
  std::vector<float> start;  // of the sums, before the first
  bool is_fenced = false;
};

inline std::map<uint32_t, Mbarrier> mbarriers;
inline std::vector<Bulk> bulks;
inline std::vector<Products> products;

inline Mbarrier& mbarrier_at(uint32_t address) {
  auto found = mbarriers.find(address);
  if (found == mbarriers.end()) fail("an mbarrier is used before it is initialized");
  return found->second;
}

inline void land_some() {
  if (bulks.empty() || draw(3)) return;
  size_t i = draw(bulks.size());
  Bulk b = bulks[i];
  bulks.erase(bulks.begin() + i);
  b.land();
  auto& barrier = mbarrier_at(b.barrier);
  barrier.bytes -= b.bytes;
  barrier.settle();
}

inline void begin_asynchronous() {
  mbarriers.clear(), bulks.clear();
  products.assign(block->fibers.size(), {});
}

inline void mbarrier_init(uint32_t address, int count) { mbarriers[address] = {count, count, 0, 0}; }
inline void mbarrier_arrive(uint32_t address) {
  auto& b = mbarrier_at(address);
  b.pending--;
  b.settle();
}
inline void mbarrier_expect(uint32_t address, int bytes) {
  auto& b = mbarrier_at(address);
  b.bytes += bytes;
  b.pending--;
  b.settle();
}
inline void mbarrier_try_wait(uint32_t& done, uint32_t address, int parity) {
  auto& b = mbarrier_at(address);
  wait_until([&] { return int(b.phase & 1) != parity; });
  done = 1;
}
inline void mbarrier_fence() {}
inline void set_registers() {}

inline void copy_bulk(uint32_t target, const void* source, int bytes, uint32_t barrier) {
  if (target % 16 || bytes % 16 || (uintptr_t)source % 16) fail("a bulk copy is not aligned");
  memset(at_shared(target), 0xFF, bytes);
  bulks.push_back({target, barrier, bytes, [=] { memcpy(at_shared(target), source, bytes); }});
}

inline uint32_t swizzled(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

inline void copy_tile(uint32_t target, unsigned long long map, int x, int y, int z,
                      uint32_t barrier) {
  auto m = *(const CUtensorMap*)map;
  if (m.rank != 3 || m.swizzle != 3) fail("a tensor map that is not emulated");
  if (target % 1024) fail("a swizzled tile is not aligned to 1024 bytes");
  if (m.box[0] * m.element_bytes != 128) fail("rows of a swizzled tile that are not 128 bytes");
  long bytes = 128l * m.box[1] * m.box[2];
  memset(at_shared(target), 0xFF, bytes);
  auto land = [=] {
    for (unsigned c = 0; c < m.box[2]; c++)
      for (unsigned b = 0; b < m.box[1]; b++)
        for (unsigned a = 0; a < m.box[0]; a++) {
          uint64_t at[3] = {uint64_t(x) + a, uint64_t(y) + b, uint64_t(z) + c};
          uint32_t row = target + (c * m.box[1] + b) * 128;
          char* place = at_shared(swizzled(row + a * m.element_bytes));
          if (at[0] < m.dims[0] && at[1] < m.dims[1] && at[2] < m.dims[2])
            memcpy(place,
                   m.base + at[0] * m.element_bytes + at[1] * m.strides[0] + at[2] * m.strides[1],
                   m.element_bytes);
          else
            memset(place, 0, m.element_bytes);
        }
  };
  bulks.push_back({target, barrier, bytes, land});
}

inline void wgmma_fence() { products[current->thread].is_fenced = true; }
inline void wgmma_commit() {
  auto& mine = products[current->thread];
  for (auto& p : mine.issued) mine.committed.push_back(p);
  mine.issued.clear();
}

template <int columns, class... Operands>
inline void wgmma(Operands&&... operands) {
  auto all = std::forward_as_tuple(operands...);
  constexpr int count = columns / 2;
  auto& mine = products[current->thread];
  if (!mine.is_fenced) fail("wgmma without wgmma.fence before it");
  float* d = &std::get<0>(all);
  if (&std::get<count - 1>(all) != d + count - 1) fail("sums of wgmma are not side by side");
  Product p{d,
            {std::get<count>(all), std::get<count + 1>(all), std::get<count + 2>(all),
             std::get<count + 3>(all)},
            std::get<count + 4>(all),
            columns};
  if (mine.start.empty()) {
    mine.start.assign(d, d + count);
    for (int i = 0; i < count; i++) d[i] = NAN;
  }
  mine.issued.push_back(p);
  with_warpgroup(nullptr, [](void**) {});
}

// Operand A: warp w has rows 16 w .. of 64, in the fragments of m16n8k16; B: K-major rows where the
// descriptor says (PTX ISA, "Matrix Descriptor"): start, stride of eight rows, swizzle of 128 bytes.
inline void multiply(Product** all) {
  Precise precise;
  static double A[64][16], B[256][16];
  uint64_t descriptor = all[0]->descriptor;
  int columns = all[0]->columns;
  if (descriptor >> 62 != 1) return fail("a swizzle of wgmma that is not emulated");
  uint32_t start = (descriptor & 0x3FFF) << 4, stride = (descriptor >> 32 & 0x3FFF) << 4;
  for (int n = 0; n < columns; n++)
    for (int k = 0; k < 16; k++) {
      uint16_t half;
      memcpy(&half, at_shared(swizzled(start + n / 8 * stride + n % 8 * 128 + k * 2)), 2);
      B[n][k] = from_bfloat16(half);
    }
  for (int t = 0; t < 128; t++)
    for (int i = 0; i < 4; i++)
      for (int h = 0; h < 2; h++)
        A[t / 32 * 16 + t % 32 / 4 + i % 2 * 8][t % 4 * 2 + i / 2 * 8 + h] =
            from_bfloat16(all[t]->a[i] >> 16 * h & 0xFFFF);
  for (int t = 0; t < 128; t++)
    for (int i = 0; i < columns / 2; i++) {
      const double* row = A[t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8];
      const double* column = B[i / 4 * 8 + t % 4 * 2 + i % 2];
      double sum = all[t]->d[i];
      for (int k = 0; k < 16; k++) sum += row[k] * column[k];
      all[t]->d[i] = float(sum);
    }
}

inline void wgmma_wait() {
  with_warpgroup(&products[current->thread], [](void** all) {
    size_t count = ((Products*)all[0])->committed.size();
    for (int t = 0; t < 128; t++) {
      auto& mine = *(Products*)all[t];
      if (mine.committed.size() != count) return fail("warps of a group issue different wgmma");
      if (count) std::copy(mine.start.begin(), mine.start.end(), mine.committed[0].d);
    }
    for (size_t i = 0; i < count; i++) {
      Product* parts[128];
      for (int t = 0; t < 128; t++) parts[t] = &((Products*)all[t])->committed[i];
      multiply(parts);
    }
    for (int t = 0; t < 128; t++) {
      auto& mine = *(Products*)all[t];
      mine.committed.clear(), mine.start.clear(), mine.is_fenced = false;
    }
  });
}

}  // namespace emulator

typedef int CUresult;
typedef uint64_t cuuint64_t;
typedef uint32_t cuuint32_t;
typedef int CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
    CUtensorMapFloatOOBfill;
enum {
  CUDA_SUCCESS = 0,
  CU_TENSOR_MAP_DATA_TYPE_UINT8 = 0,
  CU_TENSOR_MAP_DATA_TYPE_UINT16 = 1
};
inline CUresult cuGetErrorString(CUresult, const char**) { return CUDA_SUCCESS; }
inline CUresult cuTensorMapEncodeTiled(CUtensorMap* map, int type, unsigned rank, const void* base,
                                       const cuuint64_t* dims, const cuuint64_t* strides,
                                       const cuuint32_t* box, const cuuint32_t*, int, int swizzle,
                                       int, int) {
  return !encode_tensor_map(map, type, rank, base, dims, strides, box, swizzle);
}
