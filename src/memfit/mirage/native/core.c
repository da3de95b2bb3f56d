/* Settings, accounts, addresses, known values and the log of the imaginary GPU. */
#define _GNU_SOURCE
#include "mirage.h"
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* 64 TiB for each device. Programs and their libraries lie above those of the first; the others lie beyond what a host
 * pointer can be. */
#define FIRST_ADDRESS 0x100000000000ull
#define ADDRESS_SPACE 0x400000000000ull
#define DEVICE_SHIFT 48
#define SMALL MIB /* smaller allocations share pages of 2 MiB */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static mirage_gpu gpu;
static FILE *log_file;
static char summary_path[4096];
static unsigned long long launches, reads, read_bytes, unknown_calls;

/* ---- settings ---- */
static const char *text_setting(const char *name, const char *otherwise) {
  char key[64];
  const char *value;
  snprintf(key, sizeof key, "MEMFIT_MIRAGE_%s", name);
  value = getenv(key);
  return value && *value ? value : otherwise;
}
static long long setting(const char *name, long long otherwise) {
  const char *text = text_setting(name, NULL);
  return text ? strtoll(text, NULL, 10) : otherwise;
}
static void with_pid(char *out, size_t size, const char *path) {
  const char *mark = strstr(path, "{pid}");
  if (mark) snprintf(out, size, "%.*s%ld%s", (int)(mark - path), path, (long)getpid(), mark + 5);
  else snprintf(out, size, "%s", path);
}
static void summarise(void);

/* CUDA_VISIBLE_DEVICES as the runtime reads it: entries up to the first that names no device. All devices are alike. */
static int visible(int count) {
  const char *text = getenv("CUDA_VISIBLE_DEVICES");
  int found = 0;
  if (!text) return count;
  while (*text && found < count) {
    char *end;
    long index = strtol(text, &end, 10);
    if (end == text) index = strncmp(text, "GPU-", 4) ? -1 : 0;
    if (index < 0 || index >= count) break;
    found++;
    text += strcspn(text, ",");
    text += *text == ',';
  }
  return found;
}

static void start(void) {
  const char *path, *order = text_setting("ORDER", "ascending");
  snprintf(gpu.name, sizeof gpu.name, "%s", text_setting("NAME", "imaginary GPU"));
  gpu.count = (int)setting("COUNT", 1);
  if (gpu.count < 0) gpu.count = 0;
  if (gpu.count > MAX_DEVICES) gpu.count = MAX_DEVICES;
  gpu.count = visible(gpu.count);
  gpu.cuda = (int)setting("CUDA", 13000);
  gpu.major = (int)setting("MAJOR", 9);
  gpu.minor = (int)setting("MINOR", 0);
  gpu.sms = (int)setting("SMS", 132);
  gpu.threads_per_sm = (int)setting("THREADS_PER_SM", 2048);
  gpu.blocks_per_sm = (int)setting("BLOCKS_PER_SM", 32);
  gpu.registers_per_sm = (int)setting("REGISTERS_PER_SM", 65536);
  gpu.shared_per_sm = (int)setting("SHARED_PER_SM", 228 << 10);
  gpu.shared_per_block = (int)setting("SHARED_PER_BLOCK", 227 << 10);
  gpu.shared_reserved = (int)setting("SHARED_RESERVED", 1 << 10);
  gpu.l2 = (int)setting("L2", 50 << 20);
  gpu.bus_bits = (int)setting("BUS_BITS", 5120);
  gpu.memory_khz = (int)setting("MEMORY_KHZ", 2619000);
  gpu.clock_khz = (int)setting("CLOCK_KHZ", 1980000);
  gpu.integrated = (int)setting("INTEGRATED", 0);
  gpu.total = (size_t)setting("TOTAL", 80ll << 30);
  gpu.context = (size_t)setting("CONTEXT", 0);
  gpu.lag = setting("LAG", 0);
  gpu.order = !strcmp(order, "ascending") ? 0 : !strcmp(order, "descending") ? -1 : atoll(order);
  gpu.ones = !strcmp(text_setting("VALUES", "zeros"), "ones");
  if ((path = text_setting("LOG", NULL))) {
    char name[4096];
    with_pid(name, sizeof name, path);
    log_file = fopen(name, "ae");
    if (log_file) setvbuf(log_file, NULL, _IOLBF, 0);
  }
  snprintf(summary_path, sizeof summary_path, "%s", text_setting("SUMMARY", ""));
  if (*summary_path) atexit(summarise);
}
EXPORT const mirage_gpu *mirage_device(void) {
  pthread_once(&once, start);
  return &gpu;
}

/* Registers of a kernel are not known, so they are left out: what threads, blocks and shared memory allow. */
EXPORT int mirage_occupancy(int threads, size_t shared) {
  const mirage_gpu *device = mirage_device();
  int blocks = threads > 0 ? device->threads_per_sm / ((threads + 31) / 32 * 32) : 1;
  size_t taken = shared + (size_t)device->shared_reserved;
  if (blocks > device->blocks_per_sm) blocks = device->blocks_per_sm;
  if (taken && (size_t)blocks > (size_t)device->shared_per_sm / taken) blocks = (int)((size_t)device->shared_per_sm / taken);
  return blocks > 0 ? blocks : 1;
}

EXPORT void mirage_log(const char *format, ...) {
  va_list arguments;
  mirage_device();
  if (!log_file) return;
  va_start(arguments, format);
  vfprintf(log_file, format, arguments);
  va_end(arguments);
}
EXPORT void mirage_unknown(const char *function) {
  __atomic_fetch_add(&unknown_calls, 1, __ATOMIC_RELAXED);
  mirage_log("unmodelled %s\n", function);
}
EXPORT uint64_t mirage_handle(void) {
  static uint64_t last = 0x10000;
  return __atomic_add_fetch(&last, 64, __ATOMIC_RELAXED);
}

/* ---- the address book: ranges in use, sorted by address ---- */
typedef struct {
  uint64_t at;
  size_t size;  /* of the range */
  size_t taken; /* bytes of memory behind it, 0 for a bare reservation */
} range;
typedef struct {
  range *ranges;
  size_t count, room;
  uint64_t low, high, scattered; /* next fresh addresses */
  size_t used, peak, small;      /* bytes; small: of allocations below 1 MiB, which share pages */
  unsigned long long refused;
  int touched;
} account;
static account accounts[MAX_DEVICES];

static uint64_t first_of(int device) { return FIRST_ADDRESS + ((uint64_t)device << DEVICE_SHIFT); }

static size_t after(const account *a, uint64_t at) { /* index of the first range above an address */
  size_t low = 0, high = a->count;
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (a->ranges[middle].at <= at) low = middle + 1;
    else high = middle;
  }
  return low;
}
static range *holding(account *a, uint64_t at) {
  size_t i = after(a, at);
  return i && at < a->ranges[i - 1].at + a->ranges[i - 1].size ? &a->ranges[i - 1] : NULL;
}
static int vacant(const account *a, int device, uint64_t at, size_t size) {
  size_t i = after(a, at);
  if (at < first_of(device) || at + size > first_of(device) + ADDRESS_SPACE) return 0;
  if (i && a->ranges[i - 1].at + a->ranges[i - 1].size > at) return 0;
  return i == a->count || a->ranges[i].at >= at + size;
}
static uint64_t first_gap(const account *a, int device, size_t size) {
  uint64_t at = first_of(device) + GRANULE;
  for (size_t i = 0; i < a->count; i++) {
    if (a->ranges[i].at >= at + size) break;
    if (a->ranges[i].at + a->ranges[i].size > at) at = a->ranges[i].at + a->ranges[i].size + GRANULE;
  }
  return vacant(a, device, at, size) ? at : 0;
}
/* Fresh addresses first, in the order asked for; only when they run out, those given back. */
static uint64_t choose(account *a, int device, size_t size) {
  uint64_t at = 0;
  if (!a->low) {
    a->low = first_of(device) + GRANULE;
    a->high = first_of(device) + ADDRESS_SPACE;
  }
  if (size + 2 * GRANULE >= ADDRESS_SPACE) return 0;
  if (gpu.order == 0 && a->low + size + GRANULE <= first_of(device) + ADDRESS_SPACE) {
    at = a->low;
    a->low += size + GRANULE;
  } else if (gpu.order < 0 && a->high >= first_of(device) + size + 2 * GRANULE) {
    a->high -= size + GRANULE;
    at = a->high;
  } else if (gpu.order > 0) {
    for (int tries = 0; tries < 64 && !at; tries++) {
      uint64_t mixed = (++a->scattered + (uint64_t)gpu.order * 0x9E3779B97F4A7C15ull) * 0xBF58476D1CE4E5B9ull;
      mixed = (mixed ^ mixed >> 31) * 0x94D049BB133111EBull;
      mixed ^= mixed >> 29;
      at = first_of(device) + GRANULE + mixed % ((ADDRESS_SPACE - size - GRANULE) / GRANULE) * GRANULE;
      if (!vacant(a, device, at, size)) at = 0;
    }
  }
  return at && vacant(a, device, at, size) ? at : first_gap(a, device, size);
}
static uint64_t insert(int device, size_t size, size_t taken) {
  account *a = &accounts[device];
  uint64_t at = choose(a, device, size);
  size_t i;
  if (!at) return 0;
  if (a->count == a->room) {
    size_t room = a->room ? 2 * a->room : 1024;
    range *grown = realloc(a->ranges, room * sizeof *grown);
    if (!grown) return 0;
    a->ranges = grown;
    a->room = room;
  }
  i = after(a, at);
  memmove(a->ranges + i + 1, a->ranges + i, (a->count - i) * sizeof *a->ranges);
  a->ranges[i] = (range){at, size, taken};
  a->count++;
  return at;
}
static void erase(account *a, range *r) {
  size_t i = (size_t)(r - a->ranges);
  memmove(r, r + 1, (a->count - i - 1) * sizeof *r);
  a->count--;
}

/* ---- device memory ---- */
static size_t pages(size_t size) { return (size + GRANULE - 1) / GRANULE * GRANULE; }
static size_t in_use(const account *a) { return a->used + pages(a->small); }

/* Small sizes are added up and charged in whole pages, as the driver carves them out of shared ones. */
static int charge(int device, size_t size) {
  account *a = &accounts[device];
  size_t before = in_use(a), *sum = size < SMALL ? &a->small : &a->used;
  size_t whole = size < SMALL ? (size + 511) / 512 * 512 : pages(size);
  *sum += whole;
  a->touched = 1;
  if (in_use(a) > before && in_use(a) + gpu.context > gpu.total) {
    *sum -= whole;
    a->refused++;
    mirage_log("refused device=%d bytes=%zu used=%zu total=%zu\n", device, size, in_use(a), gpu.total);
    return OUT_OF_MEMORY;
  }
  if (in_use(a) > a->peak) a->peak = in_use(a);
  return OK;
}
static void discharge(int device, size_t size) {
  account *a = &accounts[device];
  if (size < SMALL) a->small -= (size + 511) / 512 * 512;
  else a->used -= pages(size);
}

EXPORT int mirage_owner(const void *address) {
  uint64_t device = (uint64_t)address >> DEVICE_SHIFT, at = (uint64_t)address & (((uint64_t)1 << DEVICE_SHIFT) - 1);
  if (at < FIRST_ADDRESS || at >= FIRST_ADDRESS + ADDRESS_SPACE) return -1;
  return device < (uint64_t)mirage_device()->count ? (int)device : -1;
}
EXPORT int mirage_take(int device, size_t size) {
  mirage_device();
  pthread_mutex_lock(&lock);
  int result = charge(device, size);
  pthread_mutex_unlock(&lock);
  return result;
}
EXPORT void mirage_give(int device, size_t size) {
  pthread_mutex_lock(&lock);
  discharge(device, size);
  pthread_mutex_unlock(&lock);
}
EXPORT uint64_t mirage_place(int device, size_t size) {
  mirage_device();
  pthread_mutex_lock(&lock);
  uint64_t at = insert(device, pages(size), 0);
  pthread_mutex_unlock(&lock);
  return at;
}
EXPORT int mirage_malloc(int device, size_t size, void **out) {
  int result;
  *out = NULL;
  if (!size) return OK;
  mirage_device();
  pthread_mutex_lock(&lock);
  result = charge(device, size);
  if (!result && !(*out = (void *)insert(device, pages(size), size))) {
    discharge(device, size);
    result = OUT_OF_MEMORY;
  }
  if (!result) mirage_log("malloc device=%d bytes=%zu at=%p used=%zu\n", device, size, *out, in_use(&accounts[device]));
  pthread_mutex_unlock(&lock);
  return result;
}
static int release(void *address, int whole) {
  int device = mirage_owner(address), result = INVALID_VALUE;
  range *r;
  if (device < 0) return INVALID_VALUE;
  pthread_mutex_lock(&lock);
  r = holding(&accounts[device], (uint64_t)address);
  if (r && r->at == (uint64_t)address && (r->taken || whole)) {
    if (r->taken) discharge(device, r->taken);
    mirage_log("free device=%d bytes=%zu at=%p used=%zu\n", device, r->taken, address, in_use(&accounts[device]));
    erase(&accounts[device], r);
    result = OK;
  }
  pthread_mutex_unlock(&lock);
  return result;
}
EXPORT int mirage_free(void *address) { return address ? release(address, 0) : OK; }
EXPORT void mirage_unplace(uint64_t address) { release((void *)address, 1); }
EXPORT int mirage_range(const void *address, uint64_t *start_at, size_t *size) {
  int device = mirage_owner(address), result = INVALID_VALUE;
  range *r;
  if (device < 0) return result;
  pthread_mutex_lock(&lock);
  if ((r = holding(&accounts[device], (uint64_t)address))) {
    if (start_at) *start_at = r->at;
    if (size) *size = r->taken ? r->taken : r->size;
    result = OK;
  }
  pthread_mutex_unlock(&lock);
  return result;
}
EXPORT size_t mirage_free_bytes(int device) {
  size_t used;
  mirage_device();
  pthread_mutex_lock(&lock);
  used = in_use(&accounts[device]) + gpu.context;
  pthread_mutex_unlock(&lock);
  return used < gpu.total ? gpu.total - used : 0;
}

static __thread int current;
EXPORT int mirage_current(void) { return current; }
EXPORT int mirage_select(int device) {
  if (device < 0 || device >= mirage_device()->count) return INVALID_DEVICE;
  current = device;
  accounts[device].touched = 1;
  return OK;
}
EXPORT int mirage_touched(int device) { return device >= 0 && device < MAX_DEVICES && accounts[device].touched; }

/* ---- pinned and managed memory: real, on the host, counted apart; its pages come into being when written ---- */
typedef struct host_block {
  struct host_block *next;
  char *at;
  size_t size;
  int kind, registered;
} host_block;
static host_block *host_blocks;
static size_t pinned, pinned_peak, managed, managed_peak;

static void count_host(size_t size, int kind) {
  size_t *now = kind == 3 ? &managed : &pinned, *peak = kind == 3 ? &managed_peak : &pinned_peak;
  *now += size;
  if (*now > *peak) *peak = *now;
}
static void add_host(char *at, size_t size, int kind, int registered) {
  host_block *block = malloc(sizeof *block);
  if (!block) return;
  pthread_mutex_lock(&lock);
  *block = (host_block){host_blocks, at, size, kind, registered};
  host_blocks = block;
  count_host(size, kind);
  pthread_mutex_unlock(&lock);
}
static host_block *remove_host(const void *at) {
  host_block **link, *found = NULL;
  pthread_mutex_lock(&lock);
  for (link = &host_blocks; *link; link = &(*link)->next)
    if ((*link)->at == at) {
      found = *link;
      *link = found->next;
      *(found->kind == 3 ? &managed : &pinned) -= found->size;
      break;
    }
  pthread_mutex_unlock(&lock);
  return found;
}
EXPORT int mirage_host_alloc(size_t size, int is_managed, void **out) {
  void *at;
  *out = NULL;
  mirage_device();
  if (!size) return OK;
  at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return OUT_OF_MEMORY;
  add_host(at, size, is_managed ? 3 : 1, 0);
  mirage_log("%s bytes=%zu at=%p\n", is_managed ? "managed" : "pinned", size, at);
  *out = at;
  return OK;
}
EXPORT int mirage_host_free(void *address) {
  host_block *block;
  if (!address) return OK;
  if (!(block = remove_host(address))) return INVALID_VALUE;
  if (!block->registered) munmap(block->at, block->size);
  free(block);
  return OK;
}
EXPORT int mirage_host_kind(const void *address, void **start_at) {
  int kind = 0;
  pthread_mutex_lock(&lock);
  for (host_block *block = host_blocks; block; block = block->next)
    if ((const char *)address >= block->at && (const char *)address < block->at + block->size) {
      kind = block->kind;
      if (start_at) *start_at = block->at;
      break;
    }
  pthread_mutex_unlock(&lock);
  return kind;
}
EXPORT void mirage_host_register(const void *address, size_t size) {
  mirage_device();
  add_host((char *)address, size, 1, 1);
}
EXPORT void mirage_host_unregister(const void *address) { free(remove_host(address)); }

/* ---- values: a few small pieces of device memory whose bytes are known, until the next kernel may change them ---- */
#define KNOWN 64
#define KNOWN_BYTES ((size_t)64 << 10)
static struct {
  uint64_t at;
  size_t size;
  char *bytes;
} known[KNOWN];
static int known_count;

static void drop_known(int i) {
  free(known[i].bytes);
  known[i] = known[--known_count];
}
static void forget_range(uint64_t at, size_t size) {
  for (int i = known_count - 1; i >= 0; i--)
    if (known[i].at < at + size && at < known[i].at + known[i].size) drop_known(i);
}
static char *learn(uint64_t at, size_t size) { /* room for the bytes at an address; NULL when they are too many */
  char *bytes;
  forget_range(at, size);
  if (!size || size > KNOWN_BYTES || !(bytes = malloc(size))) return NULL;
  if (known_count == KNOWN) drop_known(0);
  known[known_count].at = at;
  known[known_count].size = size;
  known[known_count++].bytes = bytes;
  return bytes;
}
static const char *recall(uint64_t at, size_t size) {
  for (int i = 0; i < known_count; i++)
    if (known[i].at <= at && at + size <= known[i].at + known[i].size) return known[i].bytes + (at - known[i].at);
  return NULL;
}
EXPORT void mirage_forget(void) {
  if (!__atomic_load_n(&known_count, __ATOMIC_RELAXED)) return;
  pthread_mutex_lock(&lock);
  while (known_count) drop_known(known_count - 1);
  pthread_mutex_unlock(&lock);
}

/* Whether a whole range is private memory without a file behind it: then dropping its pages makes it read as zeros. */
static int anonymous(const char *from, const char *to) {
  char line[512];
  FILE *maps = fopen("/proc/self/maps", "re");
  const char *reached = from;
  if (!maps) return 0;
  while (reached < to && fgets(line, sizeof line, maps)) {
    unsigned long low, high, inode;
    char flags[8];
    if (sscanf(line, "%lx-%lx %7s %*s %*s %lu", &low, &high, flags, &inode) != 4) continue;
    if ((const char *)high <= reached) continue;
    if ((const char *)low > reached || inode || flags[3] != 'p' || flags[1] != 'w') break;
    reached = (const char *)high;
  }
  fclose(maps);
  return reached >= to;
}
/* Zeros without touching memory where that can be had: 70 GB copied to the host take none of it. */
static void zero(char *to, size_t size) {
  if (size >= 8 * MIB) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *first = (char *)(((uintptr_t)to + page - 1) / page * page), *last = (char *)((uintptr_t)(to + size) / page * page);
    if (anonymous(first, last) && !madvise(first, (size_t)(last - first), MADV_DONTNEED)) {
      memset(to, 0, (size_t)(first - to));
      memset(last, 0, (size_t)(to + size - last));
      return;
    }
  }
  memset(to, 0, size);
}
static void invent(char *to, size_t size) {
  static const uint8_t one8 = 1;
  static const uint16_t one16 = 0x3F80; /* bfloat16 */
  static const float one32 = 1.0f;
  static const int64_t one64 = 1; /* indices and counts; as a double it is next to 0 */
  __atomic_fetch_add(&reads, 1, __ATOMIC_RELAXED);
  __atomic_fetch_add(&read_bytes, size, __ATOMIC_RELAXED);
  if (gpu.ones && size == 1) memcpy(to, &one8, 1);
  else if (gpu.ones && size == 2) memcpy(to, &one16, 2);
  else if (gpu.ones && size == 4) memcpy(to, &one32, 4);
  else if (gpu.ones && size == 8) memcpy(to, &one64, 8);
  else zero(to, size);
}
EXPORT void mirage_copy(void *to, const void *from, size_t size) {
  int from_device = mirage_owner(from) >= 0, to_device = mirage_owner(to) >= 0;
  const char *bytes;
  char *room;
  if (!size) return;
  if (!from_device && !to_device) {
    memmove(to, from, size);
    return;
  }
  pthread_mutex_lock(&lock);
  if (to_device && !from_device) {
    if ((room = learn((uint64_t)to, size))) memcpy(room, from, size);
  } else if (to_device) {
    char *copy = NULL;
    if ((bytes = size <= KNOWN_BYTES ? recall((uint64_t)from, size) : NULL) && (copy = malloc(size))) memcpy(copy, bytes, size);
    forget_range((uint64_t)to, size);
    if (copy && (room = learn((uint64_t)to, size))) memcpy(room, copy, size);
    free(copy);
  } else if ((bytes = recall((uint64_t)from, size))) {
    memcpy(to, bytes, size);
  } else {
    pthread_mutex_unlock(&lock);
    invent(to, size);
    return;
  }
  pthread_mutex_unlock(&lock);
}
EXPORT void mirage_fill(void *to, const void *pattern, size_t width, size_t size) {
  char *room;
  if (mirage_owner(to) < 0) {
    for (size_t i = 0; i + width <= size; i += width) memcpy((char *)to + i, pattern, width);
    return;
  }
  pthread_mutex_lock(&lock);
  if ((room = learn((uint64_t)to, size)))
    for (size_t i = 0; i + width <= size; i += width) memcpy(room + i, pattern, width);
  pthread_mutex_unlock(&lock);
}

/* ---- for the child process (ctypes) and for the summary ---- */
void mirage_count_launch(void) { __atomic_fetch_add(&launches, 1, __ATOMIC_RELAXED); }
EXPORT unsigned long long mirage_launches(void) { return launches; }
EXPORT unsigned long long mirage_used(int device) { return in_use(&accounts[device % MAX_DEVICES]); }
EXPORT unsigned long long mirage_peak(int device) { return accounts[device % MAX_DEVICES].peak; }
EXPORT void mirage_reset_peak(int device) { accounts[device % MAX_DEVICES].peak = mirage_used(device); }
EXPORT unsigned long long mirage_pinned(void) { return pinned; }
EXPORT unsigned long long mirage_pinned_peak(void) { return pinned_peak; }
EXPORT unsigned long long mirage_managed(void) { return managed; }
EXPORT unsigned long long mirage_managed_peak(void) { return managed_peak; }
EXPORT unsigned long long mirage_reads(void) { return reads; }

static void summarise(void) {
  char path[4200];
  FILE *file;
  int touched = 0;
  for (int d = 0; d < gpu.count; d++) touched |= accounts[d].touched;
  if (!touched) return;
  with_pid(path, sizeof path, summary_path);
  if (!(file = fopen(path, "we"))) return;
  fprintf(file, "{\"pid\": %ld, \"launches\": %llu, \"values_read\": %llu, \"bytes_read\": %llu, \"unmodelled_functions\": %llu,\n",
          (long)getpid(), launches, reads, read_bytes, unknown_calls);
  fprintf(file, " \"pinned_peak_bytes\": %zu, \"managed_peak_bytes\": %zu, \"devices\": [", pinned_peak, managed_peak);
  for (int d = 0; d < gpu.count; d++)
    fprintf(file, "%s\n  {\"used_bytes\": %zu, \"peak_bytes\": %zu, \"refused\": %llu}", d ? "," : "", in_use(&accounts[d]),
            accounts[d].peak, accounts[d].refused);
  fprintf(file, "\n ]}\n");
  fclose(file);
}
