/* A driver library for tests: libnvidia-ml.so.1 as nvidia-ml-py loads it.
 *
 * FAKE_NVML names what is wrong, in words with commas between; unset is 8 healthy GPUs.
 *   count=N          N GPUs
 *   init=E           nvmlInit answers error E
 *   names=garbled    names are not UTF-8
 *   uuid=E           the UUID call answers E
 *   memory=E         both memory calls answer E
 *   power=E          the power call answers E
 *   utilization=max  utilisation and power read all ones
 *   used=inclusive   v2's `used` counts the reserved memory too
 *   order=reversed   the GPUs come in the opposite order
 *   lost=I           GPU I is lost in each of its calls, its handle included
 *   fallen=I         GPU I is lost until NVML is opened again
 *   dying=I          GPU I is lost from its utilisation call on
 *   hang=I           GPU I's memory call hangs while the file FAKE_NVML_HANG names exists
 *   hang=init        so does nvmlInit
 * Shutting down while a call hangs aborts the process.
 * Built with -DOLD_DRIVER it has no nvmlDeviceGetMemoryInfo_v2.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long long bytes;
typedef struct { bytes total, free, used; } memory_v1;
typedef struct { unsigned version; bytes total, reserved, free, used; } memory_v2;
typedef struct { unsigned gpu, memory; } utilization;

enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, LOST = 15, VERSION_MISMATCH = 25 };
static const bytes MIB = 1ull << 20;
static int opened, openings;
static volatile int hanging;

/* What stands after "key=" in FAKE_NVML, or NULL. */
static const char *said(const char *key) {
    const char *at = getenv("FAKE_NVML");
    size_t n = strlen(key);
    while (at && *at) {
        if (!strncmp(at, key, n) && at[n] == '=') return at + n + 1;
        at = strchr(at, ',');
        if (at) at++;
    }
    return NULL;
}
static int of(const char *key) { const char *v = said(key); return v ? atoi(v) : 0; }
static int names_gpu(const char *key, int gpu) {
    const char *v = said(key);
    return v && *v >= '0' && *v <= '9' && atoi(v) == gpu;
}
static void hang(void) {
    const char *file = getenv("FAKE_NVML_HANG");
    hanging = 1;
    while (file && !access(file, F_OK)) usleep(10000);
    hanging = 0;
}

/* A handle is the GPU's number, from 1, whatever its index is. */
static int gpu_of(void *handle) { return (int)(intptr_t)handle - 1; }
static int trouble(int gpu) {
    if (!opened) return UNINITIALIZED;
    if (names_gpu("lost", gpu) || (names_gpu("fallen", gpu) && openings < 2)) return LOST;
    return OK;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    const char *v = said("hang");
    if (v && !strncmp(v, "init", 4)) hang();
    if (of("init")) return of("init");
    opened++;
    openings++;
    return OK;
}
int nvmlShutdown(void) {
    if (hanging) abort();
    if (!opened) return UNINITIALIZED;
    opened--;
    return OK;
}
int nvmlSystemGetDriverVersion(char *out, unsigned n) {
    snprintf(out, n, "580.65.06");
    return OK;
}
int nvmlDeviceGetCount_v2(unsigned *count) {
    if (!opened) return UNINITIALIZED;
    *count = said("count") ? (unsigned)of("count") : 8;
    return OK;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    unsigned count = 0;
    if (nvmlDeviceGetCount_v2(&count)) return UNINITIALIZED;
    if (index >= count) return INVALID_ARGUMENT;
    if (said("order")) index = count - 1 - index;
    *handle = (void *)(intptr_t)(index + 1);
    return names_gpu("lost", (int)index) ? LOST : OK;
}
int nvmlDeviceGetUUID(void *handle, char *out, unsigned n) {
    if (of("uuid")) return of("uuid");
    snprintf(out, n, "GPU-00000000-0000-0000-0000-%012d", gpu_of(handle));
    return trouble(gpu_of(handle));
}
int nvmlDeviceGetName(void *handle, char *out, unsigned n) {
    snprintf(out, n, said("names") ? "NVIDIA \xff\xfe\x01" : "NVIDIA H100 80GB HBM3, rev/A");
    return trouble(gpu_of(handle));
}

/* 81,559.5 MiB, of which 500 are the driver's own, and 1,024 and a byte are in use. */
static void fill(bytes *total, bytes *reserved, bytes *free_) {
    *total = 81559 * MIB + MIB / 2;
    *reserved = 500 * MIB;
    *free_ = *total - *reserved - 1024 * MIB - 1;
}
int nvmlDeviceGetMemoryInfo(void *handle, memory_v1 *out) {
    bytes reserved;
    if (of("memory")) return of("memory");
    fill(&out->total, &reserved, &out->free);
    out->used = out->total - out->free;
    return trouble(gpu_of(handle));
}
#ifndef OLD_DRIVER
int nvmlDeviceGetMemoryInfo_v2(void *handle, memory_v2 *out) {
    if (out->version != (sizeof(memory_v2) | 2u << 24)) return VERSION_MISMATCH;
    if (names_gpu("hang", gpu_of(handle))) hang();
    if (of("memory")) return of("memory");
    fill(&out->total, &out->reserved, &out->free);
    out->used = out->total - out->free - (said("used") ? 0 : out->reserved);
    return trouble(gpu_of(handle));
}
#endif
int nvmlDeviceGetUtilizationRates(void *handle, utilization *out) {
    if (names_gpu("dying", gpu_of(handle))) return LOST;
    out->gpu = said("utilization") ? ~0u : 37;
    out->memory = 12;
    return trouble(gpu_of(handle));
}
int nvmlDeviceGetTemperature(void *handle, unsigned sensor, unsigned *out) {
    (void)sensor;
    *out = 41;
    return trouble(gpu_of(handle));
}
int nvmlDeviceGetPowerUsage(void *handle, unsigned *out) {
    if (of("power")) return of("power");
    *out = said("utilization") ? ~0u : 98765;
    return trouble(gpu_of(handle));
}
