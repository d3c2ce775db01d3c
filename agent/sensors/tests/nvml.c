// A double of NVIDIA's management library with one GPU, for tests/nvidia.rs: the calls that the sensors make, in the
// driver's own layouts. It hangs while the file HANG exists, and nobody uses the GPU while the file EMPTY does (macros,
// set by the test).
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char address[32]; } Pci;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory;
typedef struct { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; } Process;
typedef struct { unsigned pid; unsigned long long timestamp; unsigned sm, memory, encoder, decoder; } Sample;

enum { OK = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7 };

int nvmlInit_v2(void) { return OK; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { (void)code; return "an error"; }
int nvmlDeviceGetCount_v2(unsigned *count) {
    const char *hang = HANG;
    while (access(hang, F_OK) == 0) usleep(10000);
    *count = 1;
    return OK;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)1; return index ? NOT_FOUND : OK; }
int nvmlDeviceGetPciInfo_v3(void *device, Pci *pci) {
    (void)device;
    memset(pci, 0, sizeof *pci);
    pci->bus = 1;
    strcpy(pci->legacy, "0000:01:00.0");
    strcpy(pci->address, "00000000:01:00.0");
    return OK;
}
int nvmlDeviceGetName(void *device, char *name, unsigned length) {
    (void)device;
    snprintf(name, length, "NVIDIA GeForce RTX 3060");
    return OK;
}
int nvmlDeviceGetUtilizationRates(void *device, unsigned *rates) { (void)device; rates[0] = 87; rates[1] = 5; return OK; }
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *degrees) { (void)device; *degrees = sensor ? 0 : 66; return OK; }
int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) { (void)device; *milliwatts = 151000; return OK; }
int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *milliwatts) { (void)device; *milliwatts = 170000; return OK; }
int nvmlDeviceGetFanSpeed_v2(void *device, unsigned fan, unsigned *percent) { (void)device; (void)fan; (void)percent; return NOT_SUPPORTED; }
int nvmlDeviceGetMemoryInfo_v2(void *device, Memory *memory) {
    (void)device;
    memory->total = 12ull << 30;
    memory->used = 9ull << 30;
    return OK;
}
static int empty(void) {
    const char *file = EMPTY;
    return access(file, F_OK) == 0;
}
static int list(const Process *have, unsigned n, unsigned *count, Process *processes) {
    unsigned room = *count;
    if (empty()) n = 0;
    *count = n;
    if (room < n) return TOO_SMALL;
    memcpy(processes, have, n * sizeof *have);
    return OK;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, Process *processes) {
    static const Process have[] = {{10, 1ull << 20, 0, 0}, {11, 2ull << 30, 0, 0}};
    (void)device;
    return list(have, 2, count, processes);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *count, Process *processes) {
    static const Process have[] = {{20, 900ull << 20, 0, 0}, {21, 300ull << 20, 0, 0}, {22, 400ull << 20, 0, 0}};
    (void)device;
    return list(have, 3, count, processes);
}
int nvmlDeviceGetProcessUtilization(void *device, Sample *samples, unsigned *count, unsigned long long since) {
    static const Sample have[] = {{20, 900, 20, 0, 0, 0}, {21, 1000, 40, 0, 0, 0}, {21, 1100, 20, 0, 0, 0}, {22, 1200, 2, 0, 0, 0}};
    (void)device;
    if (since >= 1200 || empty()) return NOT_FOUND;
    unsigned room = *count;
    *count = 4;
    if (!samples || room < 4) return TOO_SMALL;
    memcpy(samples, have, sizeof have);
    return OK;
}
