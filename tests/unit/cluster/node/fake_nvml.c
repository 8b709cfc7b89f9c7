// What pynvml needs of libnvidia-ml.so.1, for a host with two GPUs: the second is hot, worn, and lost if GPU_LOST is set.
#include <stdlib.h>
#include <string.h>

enum { OK = 0, NOT_SUPPORTED = 3, GPU_IS_LOST = 15 };
typedef struct { unsigned long long total, free, used; } Memory;

static int is_second(void* handle) { return handle == (void*)2; }

int nvmlInitWithFlags(unsigned flags) { return OK; }
int nvmlInit_v2(void) { return OK; }
int nvmlShutdown(void) { return OK; }
int nvmlDeviceGetCount_v2(unsigned* count) { *count = 2; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** handle) {
  if (index == 1 && getenv("GPU_LOST")) return GPU_IS_LOST;
  *handle = (void*)(size_t)(index + 1);
  return OK;
}
int nvmlDeviceGetName(void* handle, char* name, unsigned size) { strncpy(name, "Imagined GPU", size); return OK; }
int nvmlDeviceGetUUID(void* handle, char* uuid, unsigned size) { return NOT_SUPPORTED; }
int nvmlDeviceGetMemoryInfo(void* handle, Memory* memory) {
  memory->total = 80ull << 30;
  memory->used = 2ull << 30;
  memory->free = 78ull << 30;
  return OK;
}
int nvmlDeviceGetTemperature(void* handle, int sensor, unsigned* celsius) {
  *celsius = is_second(handle) ? 95 : 40;
  return OK;
}
int nvmlDeviceGetTemperatureThreshold(void* handle, int kind, unsigned* celsius) { *celsius = 90; return OK; }
int nvmlDeviceGetTotalEccErrors(void* handle, int kind, int counter, unsigned long long* count) {
  *count = is_second(handle) ? 3 : 0;
  return OK;
}
int nvmlDeviceGetRemappedRows(void* handle, unsigned* fixed, unsigned* lost, unsigned* pending, unsigned* failed) {
  *fixed = *lost = 0;
  *pending = 0;
  *failed = is_second(handle);
  return OK;
}
