/* libnvidia-ml: the device as a monitor sees it, coherent with the driver's accounts. */
#include "mirage.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { NVML_INVALID = 2, NVML_UNSUPPORTED = 3, NVML_SMALL = 7 };
/* A device's handle is its index plus one. */
static int index_of(void *device) { return (int)(uintptr_t)device - 1; }

EXPORT int nvmlInit_v2(void) { return OK; }
EXPORT int nvmlInit(void) { return OK; }
EXPORT int nvmlInitWithFlags(unsigned flags) {
  (void)flags;
  return OK;
}
EXPORT int nvmlShutdown(void) { return OK; }
EXPORT const char *nvmlErrorString(int error) { return error ? "not supported by the imaginary GPU" : "success"; }
EXPORT int nvmlSystemGetDriverVersion(char *out, unsigned size) {
  snprintf(out, size, "580.00");
  return OK;
}
EXPORT int nvmlSystemGetNVMLVersion(char *out, unsigned size) {
  snprintf(out, size, "13.580.00");
  return OK;
}
EXPORT int nvmlSystemGetCudaDriverVersion_v2(int *out) {
  *out = mirage_device()->cuda;
  return OK;
}
EXPORT int nvmlSystemGetCudaDriverVersion(int *out) { return nvmlSystemGetCudaDriverVersion_v2(out); }
EXPORT int nvmlDeviceGetCount_v2(unsigned *out) {
  *out = (unsigned)mirage_device()->count;
  return OK;
}
EXPORT int nvmlDeviceGetCount(unsigned *out) { return nvmlDeviceGetCount_v2(out); }
EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out) {
  *out = (void *)(uintptr_t)(index + 1);
  return (int)index < mirage_device()->count ? OK : NVML_INVALID;
}
EXPORT int nvmlDeviceGetHandleByIndex(unsigned index, void **out) { return nvmlDeviceGetHandleByIndex_v2(index, out); }
EXPORT int nvmlDeviceGetHandleByPciBusId_v2(const char *text, void **out) {
  unsigned domain, bus;
  if (sscanf(text, "%x:%x", &domain, &bus) != 2 || !bus) return NVML_INVALID;
  return nvmlDeviceGetHandleByIndex_v2(bus - 1, out);
}
EXPORT int nvmlDeviceGetHandleByUUID(const char *text, void **out) {
  size_t length = strlen(text);
  return nvmlDeviceGetHandleByIndex_v2(length ? (unsigned)(text[length - 1] - '0') : 0, out);
}
EXPORT int nvmlDeviceGetIndex(void *device, unsigned *out) {
  *out = (unsigned)index_of(device);
  return OK;
}
EXPORT int nvmlDeviceGetMinorNumber(void *device, unsigned *out) { return nvmlDeviceGetIndex(device, out); }
EXPORT int nvmlDeviceGetName(void *device, char *out, unsigned size) {
  (void)device;
  snprintf(out, size, "%s", mirage_device()->name);
  return OK;
}
EXPORT int nvmlDeviceGetUUID(void *device, char *out, unsigned size) {
  snprintf(out, size, "GPU-6d656d66-6974-2069-6d61-67696e61720%d", index_of(device)); /* "memfit imaginar" in hex */
  return OK;
}
EXPORT int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
  (void)device;
  *major = mirage_device()->major;
  *minor = mirage_device()->minor;
  return OK;
}
EXPORT int nvmlDeviceGetMemoryInfo(void *device, unsigned long long out[3]) { /* total, free, used */
  out[0] = mirage_device()->total;
  out[1] = mirage_free_bytes(index_of(device));
  out[2] = out[0] - out[1];
  return OK;
}
typedef struct {
  unsigned version;
  unsigned long long total, reserved, free, used;
} memory_v2;
EXPORT int nvmlDeviceGetMemoryInfo_v2(void *device, memory_v2 *out) {
  out->total = mirage_device()->total;
  out->reserved = 0;
  out->free = mirage_free_bytes(index_of(device));
  out->used = out->total - out->free;
  return OK;
}
EXPORT int nvmlDeviceGetUtilizationRates(void *device, unsigned out[2]) {
  (void)device;
  out[0] = out[1] = 0;
  return OK;
}
static int number(void *device, unsigned *out) {
  (void)device;
  *out = 0;
  return OK;
}
EXPORT int nvmlDeviceGetPowerUsage(void *device, unsigned *out) { return number(device, out); }
EXPORT int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *out) { return number(device, out); }
EXPORT int nvmlDeviceGetPowerManagementLimit(void *device, unsigned *out) { return number(device, out); }
EXPORT int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *out) {
  (void)sensor;
  return number(device, out);
}
EXPORT int nvmlDeviceGetClockInfo(void *device, int which, unsigned *out) {
  (void)device;
  *out = (unsigned)(which == 2 ? mirage_device()->memory_khz : mirage_device()->clock_khz) / 1000;
  return OK;
}
EXPORT int nvmlDeviceGetMaxClockInfo(void *device, int which, unsigned *out) {
  return nvmlDeviceGetClockInfo(device, which, out);
}
EXPORT int nvmlDeviceGetPersistenceMode(void *device, unsigned *out) { return number(device, out); }
EXPORT int nvmlDeviceGetMigMode(void *device, unsigned *now, unsigned *pending) {
  (void)device, (void)now, (void)pending;
  return NVML_UNSUPPORTED;
}
EXPORT int nvmlDeviceGetNvLinkState(void *device, unsigned link, unsigned *out) {
  (void)link;
  return number(device, out);
}
EXPORT int nvmlDeviceGetNvLinkRemoteDeviceType(void *device, unsigned link, unsigned *out) {
  (void)device, (void)link, (void)out;
  return NVML_UNSUPPORTED;
}
EXPORT int nvmlDeviceGetNvLinkRemotePciInfo_v2(void *device, unsigned link, void *out) {
  (void)device, (void)link, (void)out;
  return NVML_UNSUPPORTED;
}
EXPORT int nvmlDeviceGetTopologyCommonAncestor(void *a, void *b, int *out) {
  (void)a, (void)b;
  *out = 0;
  return OK;
}
EXPORT int nvmlDeviceGetP2PStatus(void *a, void *b, int index, int *out) {
  (void)a, (void)b, (void)index;
  *out = 0;
  return OK;
}

/* ---- processes: the one that asks, with everything in use on the device; entries grew from version to version ---- */
typedef struct {
  unsigned pid;
  unsigned long long used;
} process_v1;
typedef struct {
  unsigned pid;
  unsigned long long used;
  unsigned instance, compute_instance;
} process_v2;
static unsigned long long in_use(void *device) { return mirage_device()->total - mirage_free_bytes(index_of(device)); }
EXPORT int nvmlDeviceGetComputeRunningProcesses(void *device, unsigned *count, process_v1 *out) {
  if (*count < 1 || !out) return *count = 1, NVML_SMALL;
  *count = 1;
  *out = (process_v1){(unsigned)getpid(), in_use(device)};
  return OK;
}
EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, process_v2 *out) {
  if (*count < 1 || !out) return *count = 1, NVML_SMALL;
  *count = 1;
  *out = (process_v2){(unsigned)getpid(), in_use(device), 0xffffffff, 0xffffffff};
  return OK;
}
EXPORT int nvmlDeviceGetComputeRunningProcesses_v2(void *device, unsigned *count, process_v2 *out) {
  return nvmlDeviceGetComputeRunningProcesses_v3(device, count, out);
}
EXPORT int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *count, void *out) {
  (void)device, (void)out;
  *count = 0;
  return OK;
}
typedef struct {
  unsigned version;
  unsigned char cluster[16];
  int status;
  unsigned clique;
  unsigned char state;
} fabric;
EXPORT int nvmlDeviceGetGpuFabricInfoV(void *device, fabric *out) {
  (void)device;
  out->status = OK;
  out->clique = 0;
  out->state = 0; /* no fabric */
  return OK;
}
