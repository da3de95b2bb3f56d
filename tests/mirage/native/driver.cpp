// Runs the real allocator of one torch release on the commands of standard input, prints what it did.
//
//   a ID BYTES STREAM   allocate: "a ID ADDRESS", or "o ID TEXT" when out of memory
//   f ID                free
//   u ID STREAM         record_stream
//   e                   empty_cache            y   device synchronisation
//   b POOL STREAM       allocations of STREAM go to private pool POOL (b POOL -1: of every stream)
//   c POOL STREAM       the same for a graph capture
//   d POOL              end of either          r POOL   the pool may be released
//   s                   statistics             m   the memory map: segments and blocks
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <string>
#include <unordered_map>

// The hook by which the Python part of torch tells c10 that a device is in use; here it always is.
namespace c10::cuda::_internal {
void setHasPrimaryContext(bool (*)(signed char));
}
static bool in_use(signed char) { return true; }

namespace allocator = c10::cuda::CUDACachingAllocator;
#ifdef PEER_CACHE
namespace c10::cuda::detail {
void init_p2p_access_cache(int64_t);
}
#endif
extern "C" void stub_tick();
extern "C" void stub_capture(int);

template <class Stats>
static void print(const char* name, const Stats& stats) {
  for (int kind = 0; kind < 3; kind++)
    printf(" %s.%d %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64, name, kind, (int64_t)stats[kind].current,
           (int64_t)stats[kind].peak, (int64_t)stats[kind].allocated, (int64_t)stats[kind].freed);
}

static void statistics() {
  auto s = allocator::getDeviceStats(0);
  printf("s");
  print("allocation", s.allocation);
  print("segment", s.segment);
  print("active", s.active);
  print("inactive_split", s.inactive_split);
  print("allocated_bytes", s.allocated_bytes);
  print("reserved_bytes", s.reserved_bytes);
  print("active_bytes", s.active_bytes);
  print("inactive_split_bytes", s.inactive_split_bytes);
  print("requested_bytes", s.requested_bytes);
  printf(" num_alloc_retries %" PRId64 " num_ooms %" PRId64 "\n", (int64_t)s.num_alloc_retries, (int64_t)s.num_ooms);
}

static void memory_map() {
  auto segments = allocator::snapshot().segments;
  std::sort(segments.begin(), segments.end(), [](auto& a, auto& b) { return a.address < b.address; });
  printf("m");
  for (auto& g : segments) {
    printf(" [%" PRIx64 " %" PRId64 " %" PRIx64 " %d %d %" PRId64 " %" PRId64 " %" PRId64 " %d", (uint64_t)g.address,
           (int64_t)g.total_size, (uint64_t)g.stream, (int)g.is_large, (int)g.is_expandable, (int64_t)g.allocated_size,
           (int64_t)g.active_size, (int64_t)g.requested_size, (int)g.owner_private_pool_id.second);
    for (auto& b : g.blocks)
      printf(" %" PRId64 ":%" PRId64 ":%c", (int64_t)b.size, (int64_t)b.requested_size,
             b.allocated ? 'a' : b.active ? 'p' : 'f');
    printf("]");
  }
  printf("\n");
}

int main() {
#ifdef PEER_CACHE
  c10::cuda::detail::init_p2p_access_cache(1);
#endif
  c10::cuda::_internal::setHasPrimaryContext(in_use);
  allocator::init(1);
  if (getenv("FRACTION")) allocator::setMemoryFraction(atof(getenv("FRACTION")), 0);
  std::unordered_map<long, void*> live;
  std::unordered_map<long, cudaStream_t> streams;
  bool capturing = false;
  char command;
  long id;
  unsigned long long size;
  long long stream;
  auto pool = [](long n) { return c10::cuda::MempoolId_t{0, (c10::cuda::CaptureId_t)n}; };
  while (scanf(" %c", &command) == 1) {
    if (command == 'a' && scanf("%ld %llu %lld", &id, &size, &stream) == 3) {
      try {
        void* address = allocator::get()->raw_alloc_with_stream(size, (cudaStream_t)stream);
        live[id] = address;
        printf("a %ld %" PRIx64 "\n", id, (uint64_t)address);
      } catch (const c10::Error& error) {
        std::string text = error.what_without_backtrace();
        std::replace(text.begin(), text.end(), '\n', ' ');
        std::replace(text.begin(), text.end(), '\0', '?');
        printf("o %ld %s\n", id, text.c_str());
      }
      stub_tick();
    } else if (command == 'f' && scanf("%ld", &id) == 1) {
      auto found = live.find(id);
      if (found == live.end()) continue;
      allocator::raw_delete(found->second);
      live.erase(found);
    } else if (command == 'u' && scanf("%ld %lld", &id, &stream) == 2) {
      auto found = live.find(id);
      if (found == live.end()) continue;
      c10::DataPtr data(found->second, found->second, allocator::get()->raw_deleter(), c10::Device(c10::kCUDA, 0));
      allocator::get()->recordStream(data, c10::cuda::getStreamFromExternal((cudaStream_t)stream, 0));
      data.release_context();
    } else if (command == 'e') {
      allocator::emptyCache();
    } else if (command == 'y') {
      cudaDeviceSynchronize();
    } else if ((command == 'b' || command == 'c') && scanf("%ld %lld", &id, &stream) == 2) {
#ifdef CAPTURE_MARKS
      if (command == 'c') allocator::get()->markCaptureBegin(0);
      capturing = command == 'c';
      stub_capture(capturing);
#endif
#ifdef STREAM_POOLS
      streams[id] = (cudaStream_t)stream;
      allocator::get()->beginAllocateStreamToPool(0, streams[id], pool(id));
#else
      allocator::get()->beginAllocateToPool(
          0, pool(id), [stream](cudaStream_t s) { return stream < 0 || s == (cudaStream_t)stream; });
#endif
    } else if (command == 'd' && scanf("%ld", &id) == 1) {
#ifdef CAPTURE_MARKS
      if (capturing) allocator::get()->markCaptureEnd(0);
      capturing = false;
      stub_capture(0);
#endif
#ifdef STREAM_POOLS
      allocator::get()->endAllocateStreamToPool(0, streams[id]);
#else
      allocator::get()->endAllocateToPool(0, pool(id));
#endif
    } else if (command == 'r' && scanf("%ld", &id) == 1) {
      allocator::get()->releasePool(0, pool(id));
    } else if (command == 's') {
      statistics();
    } else if (command == 'm') {
      memory_map();
    }
  }
}
