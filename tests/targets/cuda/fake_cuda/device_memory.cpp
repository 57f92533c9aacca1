// The memory of the GPU that is not there: a range of addresses that the processor cannot touch but
// while a kernel or a copy runs, so that code of the host which reads a tensor of the device ends as it
// would where there is a GPU. All lies in one range: opening it is one call of the system.
#include "device_memory.h"

#include <sys/mman.h>

#include <cstring>
#include <map>
#include <mutex>

static const size_t ROOM = size_t(1) << 36, STEP = 256, PAGE = 4096;  // bytes of addresses; of alignment
static std::mutex guard;
static char* base;
static size_t top;     // of what was ever given away: in whole pages all that is opened
static int opened;     // how often
static std::map<size_t, size_t> taken, unused;  // place -> size; no two of `unused` touch

static size_t up(size_t size, size_t step) { return (size + step - 1) / step * step; }
static void protect(int rights) {
  if (top) mprotect(base, up(top, PAGE), rights);
}
void fake_cuda_open() {
  std::lock_guard<std::mutex> held(guard);
  if (!opened++) protect(PROT_READ | PROT_WRITE);
}
void fake_cuda_close() {
  std::lock_guard<std::mutex> held(guard);
  if (!--opened) protect(PROT_NONE);
}
static void* allocate(size_t size) {
  std::lock_guard<std::mutex> held(guard);
  if (!base) {
    void* made = mmap(nullptr, ROOM, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (made == MAP_FAILED) return nullptr;
    madvise(made, ROOM, MADV_HUGEPAGE);  // fewer pages to protect
    base = (char*)made;
  }
  size = up(size ? size : 1, STEP);
  auto found = unused.begin();
  while (found != unused.end() && found->second < size) ++found;
  size_t place = found == unused.end() ? top : found->first;
  if (found == unused.end()) {
    if (top + size > ROOM) return nullptr;
    top += size;
    if (opened) protect(PROT_READ | PROT_WRITE);
  } else {
    if (found->second > size) unused[place + size] = found->second - size;
    unused.erase(place);
  }
  taken[place] = size;
  return base + place;
}
void* fake_cuda_allocate(size_t size) {
  void* data = allocate(size);
  if (!data) return nullptr;
  Opened memory;
  return memset(data, 0xFF, size);  // NaN
}
void fake_cuda_release(void* data) {
  std::lock_guard<std::mutex> held(guard);
  auto found = taken.find((char*)data - base);
  if (found == taken.end()) return;
  auto [place, size] = *found;
  taken.erase(found);
  auto next = unused.lower_bound(place);
  if (next != unused.end() && next->first == place + size) size += next->second, next = unused.erase(next);
  if (next != unused.begin()) {
    auto before = std::prev(next);
    if (before->first + before->second == place) {
      before->second += size;
      return;
    }
  }
  unused[place] = size;
}
