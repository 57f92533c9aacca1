// What the emulator holds in the 128 bytes of a CUtensorMap.
#pragma once
#include <cstdint>

struct EmulatedTensorMap {
  const char* base;
  int rank, swizzle, element_bytes;
  uint64_t dims[5], strides[4];
  uint32_t box[5];
};
static_assert(sizeof(EmulatedTensorMap) <= 128);

// Whether the driver would take it: of 8-bit or 16-bit elements, aligned, boxes of up to 256.
inline bool encode_tensor_map(EmulatedTensorMap* map, int type, unsigned rank, const void* base,
                              const uint64_t* dims, const uint64_t* strides, const uint32_t* box,
                              int swizzle) {
  constexpr int uint8 = 0, uint16 = 1;
  if ((type != uint8 && type != uint16) || rank < 1 || rank > 5 || uintptr_t(base) % 16) return false;
  *map = {(const char*)base, int(rank), swizzle, type == uint8 ? 1 : 2};
  for (unsigned i = 0; i < rank; i++) {
    if (!dims[i] || !box[i] || box[i] > 256) return false;
    map->dims[i] = dims[i], map->box[i] = box[i];
    if (i + 1 == rank) break;
    if (strides[i] % 16) return false;
    map->strides[i] = strides[i];
  }
  return true;
}
