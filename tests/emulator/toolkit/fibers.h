// Threads of one CUDA block as fibers of one CPU thread.
//
// A fiber runs until it has to wait for others: at a barrier, a warp instruction, or a wait for an
// mbarrier. Which of the ready ones goes on is drawn at random, with a preference that makes some
// warps run far ahead of others, until the preference is drawn anew: what a missing barrier allows
// happens under some seed.
#pragma once
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(size_t x = 1, size_t y = 1, size_t z = 1) : x(x), y(y), z(z) {}
};

namespace emulator {

constexpr size_t STACK = 128 << 10, SHARED = 256 << 10;
constexpr int MAX_THREADS = 1024, NAMED_BARRIERS = 16;

struct Copy {  // one cp.async under way
  char* target;
  const char* source;
  int size, valid;
};

struct Fiber {
  ucontext_t context;
  uint3 index;
  int thread;
  bool is_ready, is_done;
  std::vector<std::vector<Copy>> groups;  // the last one is open
};

struct Rendezvous {  // of `expected` fibers, each with what it brings
  int arrived = 0;
  void* brought[MAX_THREADS];
  std::vector<Fiber*> waiting;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Rendezvous> warps, groups;
  Rendezvous barriers[NAMED_BARRIERS];
  std::vector<int> preference;  // of each warp
  std::vector<Fiber*> pollers;  // wait for a condition
};

inline Fiber* current;
inline Block* block;
inline ucontext_t scheduler;
inline uint3 block_index;
inline dim3 block_size, grid_size;
inline uint64_t random_state = 1;
inline std::function<void()> entry;
inline std::function<void()> on_schedule;  // of what goes on beside the threads
void begin_block();
void end_block();
inline std::string failure;
inline long progress = 0;  // counts whatever may make a condition come true
inline std::vector<std::vector<char>> stacks;
alignas(1024) inline char shared_memory[SHARED];

inline int skipped = -1;  // the number of the wait that is left out

inline bool waits(int number) { return number != skipped; }

inline uint32_t draw(uint32_t below) {  // xorshift64*
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return uint32_t((random_state * 0x2545F4914F6CDD1DULL) >> 33) % below;
}

inline void fail(const std::string& what) {
  if (failure.empty()) failure = what;
  throw std::runtime_error(what);
}

inline int lane() { return current->thread & 31; }

inline void pause() { swapcontext(&current->context, &scheduler); }

// Called by every fiber of a group; the last one runs `work(brought)` before any goes on.
template <class F>
inline void meet(Rendezvous& r, int expected, int place, void* brought, F work) {
  r.brought[place] = brought;
  if (++r.arrived < expected) {
    current->is_ready = false;
    r.waiting.push_back(current);
    pause();
    return;
  }
  r.arrived = 0;
  progress++;
  work(r.brought);
  for (Fiber* f : r.waiting) f->is_ready = true;
  r.waiting.clear();
  if (draw(2)) pause();  // the last one to arrive is not always the first to go on
}

inline int warp_threads() {  // of the current one's warp, which the last of a block may lack
  int left = block->fibers.size() - current->thread / 32 * 32;
  return left < 32 ? left : 32;
}

template <class F>
inline void with_what_there_is_of_the_warp(void* brought, F work) {
  meet(block->warps[current->thread / 32], warp_threads(), lane(), brought, work);
}

template <class F>
inline void with_warp(void* brought, F work) {
  if (warp_threads() < 32) fail("an instruction of a warp in one that is not whole");
  meet(block->warps[current->thread / 32], 32, lane(), brought, work);
}

template <class F>
inline void with_warpgroup(void* brought, F work) {
  meet(block->groups[current->thread / 128], 128, current->thread % 128, brought, work);
}

inline void barrier(int number, int threads) {
  auto& r = block->barriers[number];
  meet(r, threads, r.arrived, nullptr, [](void**) {});
}

// Until the condition holds; other fibers run meanwhile.
template <class F>
inline void wait_until(F holds) {
  while (!holds()) {
    current->is_ready = false;
    block->pollers.push_back(current);
    pause();
  }
}

inline void start() {
  try {
    entry();
  } catch (const std::exception& e) {
    if (failure.empty()) failure = e.what();
  }
  for (auto& group : current->groups)
    if (!group.empty() && failure.empty()) failure = "a thread ended with copies under way";
  current->is_done = true;
  current->is_ready = false;
  pause();
}

inline void prefer() {
  for (auto& p : block->preference) p = draw(1000);
}

// The warps with the highest preference first; within a warp, any thread.
inline Fiber* choose(std::vector<Fiber*>& ready) {
  Fiber* best = nullptr;
  int highest = -1;
  uint32_t offset = draw(ready.size());
  for (size_t i = 0; i < ready.size(); i++) {
    Fiber* f = ready[(i + offset) % ready.size()];
    int preference = block->preference[f->thread / 32];
    if (preference > highest) highest = preference, best = f;
  }
  return best;
}

inline void run_block() {
  int left = block->fibers.size(), stuck = 0;
  long before = -1;
  std::vector<Fiber*> ready;
  prefer();
  while (left) {
    if (on_schedule) on_schedule();
    ready.clear();
    for (auto& f : block->fibers)
      if (f.is_ready) ready.push_back(&f);
    if (ready.empty() || draw(4) == 0) {
      if (ready.empty()) {
        if (block->pollers.empty()) return fail("deadlock: every thread waits at a barrier");
        stuck = progress == before ? stuck + 1 : 0;
        before = progress;
        if (stuck > 64) return fail("deadlock: a condition that is waited for never comes true");
      }
      for (Fiber* f : block->pollers) f->is_ready = true, ready.push_back(f);
      block->pollers.clear();
    }
    if (draw(8) == 0) prefer();
    int warp = choose(ready)->thread / 32;  // all of its ready threads, from a random one on
    uint32_t offset = draw(ready.size());
    for (size_t i = 0; i < ready.size(); i++) {
      Fiber* f = ready[(i + offset) % ready.size()];
      if (f->thread / 32 != warp || !f->is_ready) continue;
      current = f;
      swapcontext(&scheduler, &f->context);
      if (f->is_done) left--;
      if (!failure.empty()) throw std::runtime_error(failure);
    }
  }
}

inline void run_grid(dim3 grid, dim3 size, size_t dynamic_bytes, std::function<void()> body) {
  int threads = size.x * size.y * size.z;
  if (dynamic_bytes > SHARED) throw std::runtime_error("more shared memory than there is");
  Block b;
  b.fibers.resize(threads);
  b.warps.resize((threads + 31) / 32);
  b.groups.resize((threads + 127) / 128);
  b.preference.resize((threads + 31) / 32);
  while (stacks.size() < size_t(threads)) stacks.emplace_back(STACK);
  block = &b, entry = body, grid_size = grid, block_size = size;
  failure.clear();
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x; x++) {
        block_index = {x, y, z};
        memset(shared_memory, 0xFF, dynamic_bytes);  // NaN, if read before it is written
        for (int i = 0; i < threads; i++) {
          Fiber& f = b.fibers[i];
          f.thread = i;
          f.index = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
          f.is_done = false, f.is_ready = true;
          f.groups.assign(1, {});
          getcontext(&f.context);
          f.context.uc_stack.ss_sp = stacks[i].data();
          f.context.uc_stack.ss_size = STACK;
          f.context.uc_link = nullptr;
          makecontext(&f.context, start, 0);
        }
        begin_block();
        run_block();
        end_block();
      }
}

}  // namespace emulator
