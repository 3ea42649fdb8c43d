/* A driver library for tests: libnvidia-ml.so.1 as nvidia-ml-py loads it.
 *
 * Words with commas or newlines between say what it is to tell; none is 8 healthy, idle GPUs. They
 * come from the file that FAKE_NVML_FILE names, read anew at each call, or else from FAKE_NVML.
 * I is a GPU's number, whatever its index is; E an error; FUNCTION a name from below, in full.
 *   count=N          N GPUs
 *   init=E           nvmlInit answers error E
 *   driver=E         every call answers E, and after it "uninitialised" until NVML is opened again
 *   fail=FUNCTION/E  FUNCTION answers E; fail=FUNCTION/E/I for GPU I alone
 *   hang=FUNCTION    FUNCTION hangs while the file FAKE_NVML_HANG names exists; hang=FUNCTION/I
 *   hang=I           GPU I's memory call hangs; hang=init: nvmlInit
 *   lost=I           GPU I is lost in each of its calls, its handle included
 *   fallen=I         GPU I is lost until NVML is opened again
 *   stale=E          what is asked of a GPU answers E until NVML is opened again
 *   dying=I          GPU I is lost from its utilisation call on
 *   names=garbled    names are not UTF-8
 *   uuid=E memory=E power=E  the UUID call, both memory calls, the power call answer E
 *   utilization=max  utilisation and power read all ones
 *   used=inclusive   v2's `used` counts the reserved memory too
 *   order=reversed   the GPUs come in the opposite order
 *   v3=missing       the newer process calls are not there
 *   process=I/PID/MIB  a process on GPU I; MIB may be `none`; also graphics= and mps=
 *   process=I.P/...  the same, on part P of GPU I
 *   busy=I/PID/PCT/US  PID computed PCT % of the time until the moment US
 *   mig=I/MIB+MIB    GPU I is divided: a part for each MIB, 0 for a gap between them
 *   instances=I/N    all parts of GPU I are compute instances of its GPU instance N
 *   xid=I/CODE       GPU I reports the error CODE; each such word is delivered once, in order
 *   ecc=I/N  rows=I/PENDING/FAILED  action=I/N  memory errors, rows to remap, what to do
 *   name=I/TEXT      GPU I's name; partname=I/TEXT: the name of each of its parts
 *   version=TEXT     the driver's version
 *   computemode=I/N  GPU I's compute mode: 0 default, 2 prohibited, 3 exclusive to a process
 *   percent=I/N      GPU I's utilisation; allocated=I/MIB: its memory in use; total=I/MIB: all of it
 *   energy=I/MJ      what GPU I has drawn since the driver was loaded
 *   persistence=I/N  GPU I's persistence mode: 0 off; on is what is not told
 *   slow=MS          each call but the wait for events takes so long
 *   r535=1           the newest process calls fill larger entries, as drivers 535.43 to 535.86 did;
 *                    cc=1: the protected memory in them reads 0 and not "not told"
 *   limits=1         memory limits of cgroups can be set, as from driver 615 on; they stand in the file
 *                    FAKE_NVML_FILE with ".limits", as the driver keeps them beyond any process;
 *                    limits=E: setting one answers E
 * While it is open a file is, as the real library has /dev/nvidia0 open: "fake-nvidia".
 * Shutting down while a call runs aborts the process.
 * The oldest calls (nvmlInit_v2, nvmlDeviceGetCount, process lists without a suffix) are there too.
 * Built with -DOLD_DRIVER it has none of the calls that came later.
 */
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef unsigned long long u64;
typedef struct { u64 total, free, used; } memory_v1;
typedef struct { unsigned version; u64 total, reserved, free, used; } memory_v2;
typedef struct { unsigned gpu, memory; } utilization;
typedef struct { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; } process;
typedef struct { unsigned pid; u64 used; } process_v1;
typedef struct { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; u64 protected_; } process_r535;
typedef struct { unsigned version, sensor; int celsius; } temperature;
typedef struct { unsigned pid; u64 at_us; unsigned sm, memory, encoder, decoder; } busy;
typedef struct { void *device; u64 type, data; unsigned gpu_instance, compute_instance; } event;
typedef struct { const char *cgroup; u64 soft, hard; } limits_set;
typedef struct { const char *cgroup; u64 soft, hard, used; } limits_got;
typedef struct {
    unsigned field, scope;
    long long at_us, latency_us;
    unsigned type;
    int error;
    union { unsigned number; u64 longest; } value;
} field_value;

enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
       TIMEOUT = 10, FUNCTION_NOT_FOUND = 13, LOST = 15, VERSION_MISMATCH = 25 };
enum { GPUS = 64, XID = 8, RECOVERY_ACTION = 230 };
static const u64 MIB = 1ull << 20;
static int opened, openings, delivered, device_file, watched[GPUS];
static volatile int running;

static int entered(void) { return __sync_add_and_fetch(&running, 1); }
static void left(int *call) { (void)call; __sync_sub_and_fetch(&running, 1); }
#define CALL __attribute__((cleanup(left), unused)) int call = entered()

/* What is to be told now: a copy of this thread's own. */
static const char *words(void) {
    static __thread char text[65536];
    const char *path = getenv("FAKE_NVML_FILE"), *plain = getenv("FAKE_NVML");
    if (!path) return plain ? plain : "";
    FILE *file = fopen(path, "r");
    text[file ? fread(text, 1, sizeof text - 1, file) : 0] = 0;
    if (file) fclose(file);
    return text;
}
/* What stands after "key=" in the n-th word that starts so, or NULL. */
static const char *nth(const char *key, int n) {
    size_t length = strlen(key);
    for (const char *at = words(); *at; at += strcspn(at, ",\n"), at += *at != 0)
        if (!strncmp(at, key, length) && at[length] == '=' && n-- == 0) return at + length + 1;
    return NULL;
}
static const char *said(const char *key) { return nth(key, 0); }
static int of(const char *key) { const char *v = said(key); return v ? atoi(v) : 0; }
static int digit(const char *at) { return at && *at >= '0' && *at <= '9'; }
static int names_gpu(const char *key, int gpu) {
    const char *v = said(key);
    return digit(v) && v[strcspn(v, "/,\n")] != '/' && atoi(v) == gpu;
}
/* What stands after "key=I/" for this GPU, or NULL. */
static const char *told(const char *key, int gpu) {
    const char *v;
    for (int n = 0; (v = nth(key, n)); n++)
        if (atoi(v) == gpu) return strchr(v, '/') + 1;
    return NULL;
}
static unsigned number(const char *key, int gpu) { const char *v = told(key, gpu); return v ? (unsigned)atoi(v) : 0; }
/* Print the text that stands after "key=I/"; return whether there is one. */
static int print(const char *key, int gpu, char *out, unsigned n) {
    const char *v = told(key, gpu);
    if (v) snprintf(out, n, "%.*s", (int)strcspn(v, ",\n"), v);
    return v != NULL;
}
static void hang(void) {
    const char *file = getenv("FAKE_NVML_HANG");
    while (file && !access(file, F_OK)) usleep(10000);
}
/* What follows FUNCTION in a word "key=FUNCTION...", or NULL. */
static const char *on_function(const char *key, const char *function) {
    const char *v;
    size_t length = strlen(function);
    for (int n = 0; (v = nth(key, n)); n++)
        if (!strncmp(v, function, length) && strchr("/,\n", v[length])) return v + length;
    return NULL;
}

/* A handle is the GPU's number, from 1, whatever its index is, and a thousand for each part up to the one meant. */
static int gpu_of(void *handle) { return (int)((intptr_t)handle % 1000) - 1; }
static int part_of(void *handle) { return (int)((intptr_t)handle / 1000) - 1; }
static int gpus(void) { return said("count") ? of("count") : 8; }

static int session(const char *function, int gpu) {
    if (of("slow") && strcmp(function, "nvmlEventSetWait_v2")) usleep(1000u * (unsigned)of("slow"));
    const char *v = on_function("hang", function);
    if (v && (*v != '/' || atoi(v + 1) == gpu)) hang();
    if (of("driver")) { opened = 0; return of("driver"); }
    if (!opened) return UNINITIALIZED;
    v = on_function("fail", function);
    if (!v) return OK;
    const char *alone = strchr(v + 1, '/');
    if (alone && alone < v + strcspn(v, ",\n") && atoi(alone + 1) != gpu) return OK;
    return atoi(v + 1);
}
static int trouble(const char *function, int gpu) {
    int error = session(function, gpu);
    if (error) return error;
    if (gpu >= gpus()) return INVALID_ARGUMENT;
    if (of("stale") && openings < 2) return of("stale");
    if (names_gpu("lost", gpu) || (names_gpu("fallen", gpu) && openings < 2)) return LOST;
    return OK;
}
/* Leave the function if there is trouble. */
#define GPU_CALL(handle) \
    CALL; \
    int gpu = gpu_of(handle), error = trouble(__func__, gpu); \
    if (error) return error

int nvmlInitWithFlags(unsigned flags) {
    CALL;
    (void)flags;
    const char *v = said("hang");
    if (v && !strncmp(v, "init", 4)) hang();
    if (of("driver")) return of("driver");
    if (of("init")) return of("init");
    memset(watched, 0, sizeof watched);
    if (!opened++) device_file = memfd_create("fake-nvidia", MFD_CLOEXEC);
    openings++;
    return OK;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) {
    if (running) abort();
    if (!opened) return UNINITIALIZED;
    if (!--opened) close(device_file);
    return OK;
}
int nvmlSystemGetDriverVersion(char *out, unsigned n) {
    CALL;
    const char *v = said("version");
    snprintf(out, n, "%.*s", v ? (int)strcspn(v, ",\n") : 9, v ? v : "580.65.06");
    return session(__func__, -1);
}
int nvmlDeviceGetCount_v2(unsigned *count) {
    CALL;
    *count = (unsigned)gpus();
    return session(__func__, -1);
}
int nvmlDeviceGetCount(unsigned *count) { return nvmlDeviceGetCount_v2(count); }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    CALL;
    unsigned count = (unsigned)gpus();
    if (index >= count) return INVALID_ARGUMENT;
    if (said("order")) index = count - 1 - index;
    *handle = (void *)(intptr_t)(index + 1);
    int error = session(__func__, (int)index);
    return error ? error : names_gpu("lost", (int)index) ? LOST : OK;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    CALL;
    int part = 0, gpu = 0;
    if (sscanf(uuid, "GPU-00000000-0000-0000-0000-%d", &gpu) == 1) *handle = (void *)(intptr_t)(gpu + 1);
    else if (sscanf(uuid, "MIG-00000000-0000-0000-%d-%d", &part, &gpu) == 2)
        *handle = (void *)(intptr_t)(gpu + 1 + 1000 * (part + 1));
    else return NOT_FOUND;
    return trouble(__func__, gpu);
}
int nvmlDeviceGetUUID(void *handle, char *out, unsigned n) {
    if (of("uuid")) return of("uuid");
    GPU_CALL(handle);
    if (part_of(handle) < 0) snprintf(out, n, "GPU-00000000-0000-0000-0000-%012d", gpu);
    else snprintf(out, n, "MIG-00000000-0000-0000-%04d-%012d", part_of(handle), gpu);
    return OK;
}
int nvmlDeviceGetName(void *handle, char *out, unsigned n) {
    GPU_CALL(handle);
    if (print(part_of(handle) < 0 ? "name" : "partname", gpu, out, n)) return OK;
    snprintf(out, n, said("names") ? "NVIDIA \xff\xfe\x01" : "NVIDIA H100 80GB HBM3%s",
             part_of(handle) < 0 ? ", rev/A" : " MIG 1g.10gb");
    return OK;
}

/* MiB of a part; 0 if there is none. */
static u64 part_mib(int gpu, int part) {
    const char *v = told("mig", gpu);
    for (; v && part > 0; part--) {
        v += strcspn(v, "+,\n");
        v = *v == '+' ? v + 1 : NULL;
    }
    return digit(v) ? (u64)atoi(v) : 0;
}
/* 81,559.5 MiB, of which 500 are the driver's own, and 1,024 and a byte are in use; of a part, 13 are. */
static void fill(void *handle, u64 *total, u64 *reserved, u64 *free_) {
    int whole = part_of(handle) < 0;
    if (!whole)
        *total = part_mib(gpu_of(handle), part_of(handle)) * MIB;
    else if (told("total", gpu_of(handle)))
        *total = number("total", gpu_of(handle)) * MIB;
    else
        *total = 81559 * MIB + MIB / 2;
    *reserved = whole ? 500 * MIB : 0;
    *free_ = *total - *reserved - (whole ? 1024 * MIB + 1 : 13 * MIB);
    if (whole && told("allocated", gpu_of(handle)))
        *free_ = *total - *reserved - number("allocated", gpu_of(handle)) * MIB;
    if (!*total) *reserved = *free_ = 0;
}
int nvmlDeviceGetMemoryInfo(void *handle, memory_v1 *out) {
    u64 reserved;
    if (of("memory")) return of("memory");
    GPU_CALL(handle);
    fill(handle, &out->total, &reserved, &out->free);
    out->used = out->total - out->free;
    return OK;
}
#ifndef OLD_DRIVER
int nvmlDeviceGetMemoryInfo_v2(void *handle, memory_v2 *out) {
    CALL;
    if (out->version != (sizeof(memory_v2) | 2u << 24)) return VERSION_MISMATCH;
    if (names_gpu("hang", gpu_of(handle))) hang();
    if (of("memory")) return of("memory");
    int error = trouble(__func__, gpu_of(handle));
    fill(handle, &out->total, &out->reserved, &out->free);
    out->used = out->total - out->free - (said("used") ? 0 : out->reserved);
    return error;
}
#endif
int nvmlDeviceGetUtilizationRates(void *handle, utilization *out) {
    GPU_CALL(handle);
    if (names_gpu("dying", gpu)) return LOST;
    if (told("mig", gpu)) return NOT_SUPPORTED;
    out->gpu = said("utilization") ? ~0u : told("percent", gpu) ? number("percent", gpu) : 37;
    out->memory = 12;
    return OK;
}
int nvmlDeviceGetTemperature(void *handle, unsigned sensor, unsigned *out) {
    GPU_CALL(handle);
    (void)sensor;
    *out = 41;
    return OK;
}
#ifndef OLD_DRIVER
int nvmlDeviceGetTemperatureV(void *handle, temperature *out) {
    GPU_CALL(handle);
    if (out->version != (sizeof(temperature) | 1u << 24)) return VERSION_MISMATCH;
    if (out->sensor) return INVALID_ARGUMENT;
    out->celsius = 41;
    return OK;
}
#endif
int nvmlDeviceGetPowerUsage(void *handle, unsigned *out) {
    if (of("power")) return of("power");
    GPU_CALL(handle);
    *out = said("utilization") ? ~0u : 98765;
    return OK;
}
int nvmlDeviceGetEnforcedPowerLimit(void *handle, unsigned *out) {
    GPU_CALL(handle);
    *out = 700000;
    return OK;
}
#ifndef OLD_DRIVER
int nvmlDeviceGetTotalEnergyConsumption(void *handle, u64 *out) {
    GPU_CALL(handle);
    const char *v = told("energy", gpu);
    *out = said("utilization") ? ~0ull : v ? strtoull(v, NULL, 10) : 7000000;
    return OK;
}
#endif
int nvmlDeviceGetClockInfo(void *handle, unsigned clock, unsigned *out) {
    GPU_CALL(handle);
    *out = clock == 1 ? 1980 : 2619;
    return OK;
}
int nvmlDeviceGetTotalEccErrors(void *handle, unsigned kind, unsigned counter, u64 *out) {
    GPU_CALL(handle);
    if (kind != 1 || counter != 0) return INVALID_ARGUMENT;
    *out = number("ecc", gpu);
    return OK;
}
int nvmlDeviceGetRemappedRows(void *handle, unsigned *corrected, unsigned *uncorrected, unsigned *pending,
                              unsigned *failed) {
    GPU_CALL(handle);
    const char *v = told("rows", gpu);
    *corrected = *uncorrected = *pending = *failed = 0;
    if (v) sscanf(v, "%u/%u", pending, failed);
    return OK;
}
int nvmlDeviceGetFieldValues(void *handle, int n, field_value *out) {
    GPU_CALL(handle);
    for (int i = 0; i < n; i++) {
        out[i].error = out[i].field == RECOVERY_ACTION ? OK : NOT_SUPPORTED;
#ifdef OLD_DRIVER
        out[i].error = INVALID_ARGUMENT;
#endif
        out[i].value.number = number("action", gpu);
    }
    return OK;
}
int nvmlDeviceGetPcieThroughput(void *handle, unsigned counter, unsigned *out) {
    GPU_CALL(handle);
    usleep(20000);
    *out = (counter ? 2000u : 1000u) * (unsigned)(gpu + 1);
    return OK;
}

enum form { V1, V2, R535 };
static void put(void *entries, unsigned at, enum form form, process p) {
    if (form == V1) ((process_v1 *)entries)[at] = (process_v1){ p.pid, p.used };
    else if (form == V2) ((process *)entries)[at] = p;
    else ((process_r535 *)entries)[at] =
        (process_r535){ p.pid, p.used, p.gpu_instance, p.compute_instance, said("cc") ? 0 : ~0ull };
}
/* The processes that words with this key name on a handle. */
static int list(const char *key, void *handle, unsigned *count, void *out, enum form form) {
    const char *v;
    unsigned found = 0;
    for (int n = 0; (v = nth(key, n)); n++) {
        int gpu = atoi(v), end = 0, part = -1;
        process p = { 0, 0, ~0u, ~0u };
        v += strcspn(v, "./");
        if (*v == '.') part = atoi(v + 1);
        v += strcspn(v, "/");
        sscanf(v, "/%u/%n", &p.pid, &end);
        if (gpu != gpu_of(handle) || (part_of(handle) >= 0 && part != part_of(handle))) continue;
        p.used = digit(v + end) ? (u64)atoi(v + end) * MIB : ~0ull;
        if (out && found < *count) put(out, found, form, p);
        found++;
    }
    int fits = out ? found <= *count : found == 0;
    *count = found;
    return fits ? OK : INSUFFICIENT_SIZE;
}
#define PROCESSES(name, key, form) \
    int name(void *handle, unsigned *count, void *out) { \
        GPU_CALL(handle); \
        if (said("v3") && strstr(__func__, "_v3")) return FUNCTION_NOT_FOUND; \
        return list(key, handle, count, out, form); \
    }
PROCESSES(nvmlDeviceGetComputeRunningProcesses, "process", V1)
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses, "graphics", V1)
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v2, "process", V2)
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v2, "graphics", V2)
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v2, "mps", V2)
#ifndef OLD_DRIVER
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3, "process", said("r535") ? R535 : V2)
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3, "graphics", said("r535") ? R535 : V2)
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3, "mps", said("r535") ? R535 : V2)
#endif
int nvmlDeviceGetProcessUtilization(void *handle, busy *out, unsigned *count, u64 since_us) {
    GPU_CALL(handle);
    const char *v;
    unsigned found = 0;
    if (told("mig", gpu)) return NOT_SUPPORTED;
    for (int n = 0; (v = nth("busy", n)); n++) {
        busy b = { 0, 0, 0, 0, 0, 0 };
        int on = -1;
        sscanf(v, "%d/%u/%u/%llu", &on, &b.pid, &b.sm, &b.at_us);
        if (on != gpu || b.at_us <= since_us) continue;
        if (out && found < *count) out[found] = b;
        found++;
    }
    *count = found;
    return !found ? NOT_FOUND : out ? OK : INSUFFICIENT_SIZE;
}

int nvmlDeviceGetComputeMode(void *handle, unsigned *mode) {
    GPU_CALL(handle);
    *mode = number("computemode", gpu);
    return OK;
}
int nvmlDeviceGetPersistenceMode(void *handle, unsigned *mode) {
    GPU_CALL(handle);
    *mode = !told("persistence", gpu) || number("persistence", gpu);
    return OK;
}
int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    GPU_CALL(handle);
    *current = *pending = told("mig", gpu) != NULL;
    return OK;
}
int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) {
    GPU_CALL(handle);
    *count = 7;
    return OK;
}
int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **part) {
    GPU_CALL(handle);
    if (!part_mib(gpu, (int)index)) return NOT_FOUND;
    *part = (void *)((intptr_t)handle + 1000 * (intptr_t)(index + 1));
    return OK;
}

int nvmlDeviceGetGpuInstanceId(void *handle, unsigned *id) {
    GPU_CALL(handle);
    if (part_of(handle) < 0) return INVALID_ARGUMENT;
    *id = told("instances", gpu) ? number("instances", gpu) : (unsigned)part_of(handle) + 1;
    return OK;
}

/* The file of the limits, one a line: GPU, soft, hard, cgroup. The last of a GPU and a cgroup counts. */
static FILE *limits_file(const char *mode) {
    char path[4096];
    if (!getenv("FAKE_NVML_FILE")) return NULL;
    snprintf(path, sizeof path, "%s.limits", getenv("FAKE_NVML_FILE"));
    return fopen(path, mode);
}
int nvmlDeviceSetMemoryLimits_v1(void *handle, const limits_set *limits) {
    GPU_CALL(handle);
    if (!said("limits")) return FUNCTION_NOT_FOUND;
    if (part_of(handle) >= 0) return NOT_SUPPORTED;
    if (of("limits") > 1) return of("limits");
    if (limits->soft > limits->hard) return INVALID_ARGUMENT;
    if (access(limits->cgroup, F_OK)) return NOT_FOUND;
    FILE *file = limits_file("a");
    if (!file) return INVALID_ARGUMENT;
    fprintf(file, "%d %llu %llu %s\n", gpu, limits->soft, limits->hard, limits->cgroup);
    fclose(file);
    return OK;
}
int nvmlDeviceGetMemoryLimits_v1(void *handle, limits_got *limits) {
    GPU_CALL(handle);
    char cgroup[4096];
    int of_gpu;
    u64 soft, hard;
    if (!said("limits")) return FUNCTION_NOT_FOUND;
    if (part_of(handle) >= 0) return NOT_SUPPORTED;
    if (access(limits->cgroup, F_OK)) return NOT_FOUND;
    limits->soft = limits->used = 0;
    limits->hard = ~0ull;
    FILE *file = limits_file("r");
    while (file && fscanf(file, "%d %llu %llu %4095[^\n]", &of_gpu, &soft, &hard, cgroup) == 4)
        if (of_gpu == gpu && !strcmp(cgroup, limits->cgroup)) { limits->soft = soft; limits->hard = hard; }
    if (file) fclose(file);
    return OK;
}

int nvmlEventSetCreate(void **set) {
    CALL;
    *set = watched;
    return session(__func__, -1);
}
int nvmlEventSetFree(void *set) {
    CALL;
    (void)set;
    return session(__func__, -1);
}
int nvmlDeviceGetSupportedEventTypes(void *handle, u64 *types) {
    GPU_CALL(handle);
    *types = XID | 1 | 2;
    return OK;
}
int nvmlDeviceRegisterEvents(void *handle, u64 types, void *set) {
    GPU_CALL(handle);
    (void)set;
    if (types & ~(u64)(XID | 1 | 2)) return NOT_SUPPORTED;
    if (gpu < GPUS) watched[gpu] = (types & XID) != 0;
    return OK;
}
int nvmlEventSetWait_v2(void *set, event *out, unsigned timeout_ms) {
    CALL;
    (void)set;
    for (unsigned waited_ms = 0;; waited_ms += 5) {
        const char *v;
        int error = session(__func__, -1);
        if (error) return error;
        while ((v = nth("xid", delivered))) {
            int gpu = atoi(v);
            delivered++;
            if (gpu < GPUS && !watched[gpu]) continue;
            *out = (event){ (void *)(intptr_t)(gpu + 1), XID, (u64)atoi(strchr(v, '/') + 1), ~0u, ~0u };
            return OK;
        }
        if (waited_ms >= timeout_ms) return TIMEOUT;
        usleep(5000);
    }
}
