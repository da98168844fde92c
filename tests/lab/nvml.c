/* A stand-in for NVIDIA's libnvidia-ml.so.1: cards and processes are what a text file says.
 *
 * The file is named by PODYD_LAB_NVML and is read anew at every call; without one, no driver is
 * loaded. nvml.py writes it and builds this. A word that is not there, or "-", is a figure that the
 * card does not support:
 *
 *     driver 535.183.01        the kernel module's; another one than ours is a mismatch
 *     cuda 12020
 *     init 9                   nvmlInit fails with this nvmlReturn_t
 *     hangs                    every call, for as long as this stands here
 *     gpu                      a card; what follows is about it
 *     uuid GPU-5f1c2a3e-7b84-4d6a-9c0f-1e2d3c4b5a60
 *     pci 0000:41:00.0
 *     name NVIDIA A100 80GB PCIe
 *     minor 0
 *     lost                     it has fallen off the bus
 *     memory 85899345920 1048576      total and used, bytes
 *     utilisation 40           percent
 *     temperature 35           degrees Celsius
 *     power 61000              milliwatts, as the next
 *     limit 300000
 *     persistence 1
 *     peak 40                  the highest of its last three samples; else all are as its utilisation
 *     no-process-utilisation
 *     new-process-utilisation  only the newer of the two calls for it works, as on Blackwell
 *     process 4711 compute 1048576 40 1 0     pid, kind, bytes or "-", percent since the time that
 *                              is asked for, percent in the whole buffer, and the time of its
 *                              sample in the buffer (microseconds; 0: now)
 *
 * Layouts and return values are those of nvml.h, as NVIDIA's Python binding has them.
 */

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#ifndef DRIVER_VERSION
#error "compile with -DDRIVER_VERSION"
#endif

typedef int nvmlReturn_t;
enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    GPU_IS_LOST = 15,
    LIB_RM_VERSION_MISMATCH = 18
};

typedef struct {
    char busIdLegacy[16];
    unsigned domain, bus, device, pciDeviceId, pciSubSystemId;
    char busId[32];
} nvmlPciInfo_t;

typedef struct {
    unsigned long long total, free, used;
} nvmlMemory_t;

typedef struct {
    unsigned gpu, memory;
} nvmlUtilization_t;

typedef struct {
    unsigned pid;
    unsigned long long usedGpuMemory;
    unsigned gpuInstanceId, computeInstanceId;
} nvmlProcessInfo_t;

typedef struct {
    unsigned pid;
    unsigned long long timeStamp;
    unsigned smUtil, memUtil, encUtil, decUtil;
} nvmlProcessUtilizationSample_t;

typedef struct {
    unsigned long long timeStamp;
    unsigned pid, smUtil, memUtil, encUtil, decUtil, jpgUtil, ofaUtil;
} nvmlProcessUtilizationInfo_v1_t;

typedef struct {
    unsigned version, processSamplesCount;
    unsigned long long lastSeenTimeStamp;
    nvmlProcessUtilizationInfo_v1_t *procUtilArray;
} nvmlProcessesUtilizationInfo_v1_t;

typedef struct {
    unsigned long long timeStamp;
    union {
        double d;
        unsigned ui;
    } sampleValue;
} nvmlSample_t;

#define GPU_UTILIZATION_SAMPLES 1
#define VALUE_TYPE_UNSIGNED_INT 1
#define CARD_SAMPLES 3
#define MAX_CARDS 16
#define MAX_PROCESSES 512
#define ABSENT (-1LL)
/* The driver measures six times a second. */
#define TICK_MICROSECONDS 166667ULL

struct process {
    unsigned pid;
    char kind[16];
    long long memory;
    unsigned utilisation, in_buffer;
    unsigned long long sampled;
};

struct card {
    char uuid[80], pci[32], name[96];
    int lost, no_process_utilisation, new_process_utilisation;
    long long minor, total, used, utilisation, peak, temperature, power, limit, persistence;
    unsigned count;
    struct process processes[MAX_PROCESSES];
};

static struct {
    char driver[80];
    int cuda, init, hangs;
    unsigned count;
    struct card cards[MAX_CARDS];
} state;

static int initialised;

/* --- the file --- */

static long long number(const char *text)
{
    return *text == '\0' || *text == '-' ? ABSENT : atoll(text);
}

static void read_process(struct card *card, const char *text)
{
    struct process *process;
    char memory[32] = "";

    if (card->count == MAX_PROCESSES)
        return;
    process = &card->processes[card->count++];
    memset(process, 0, sizeof *process);
    sscanf(text, "%u %15s %31s %u %u %llu", &process->pid, process->kind, memory,
           &process->utilisation, &process->in_buffer, &process->sampled);
    process->memory = number(memory);
}

static void read_card_line(struct card *card, const char *word, const char *rest)
{
    char total[32] = "", used[32] = "";

    if (!strcmp(word, "uuid"))
        snprintf(card->uuid, sizeof card->uuid, "%s", rest);
    else if (!strcmp(word, "pci"))
        snprintf(card->pci, sizeof card->pci, "%s", rest);
    else if (!strcmp(word, "name"))
        snprintf(card->name, sizeof card->name, "%s", rest);
    else if (!strcmp(word, "minor"))
        card->minor = number(rest);
    else if (!strcmp(word, "lost"))
        card->lost = 1;
    else if (!strcmp(word, "memory")) {
        sscanf(rest, "%31s %31s", total, used);
        card->total = number(total);
        card->used = number(used);
    } else if (!strcmp(word, "utilisation"))
        card->utilisation = number(rest);
    else if (!strcmp(word, "peak"))
        card->peak = number(rest);
    else if (!strcmp(word, "temperature"))
        card->temperature = number(rest);
    else if (!strcmp(word, "power"))
        card->power = number(rest);
    else if (!strcmp(word, "limit"))
        card->limit = number(rest);
    else if (!strcmp(word, "persistence"))
        card->persistence = number(rest);
    else if (!strcmp(word, "no-process-utilisation"))
        card->no_process_utilisation = 1;
    else if (!strcmp(word, "new-process-utilisation"))
        card->new_process_utilisation = 1;
    else if (!strcmp(word, "process"))
        read_process(card, rest);
}

static struct card *new_card(void)
{
    struct card *card = &state.cards[state.count++];

    memset(card, 0, offsetof(struct card, processes));
    card->minor = card->total = card->used = card->utilisation = card->temperature = ABSENT;
    card->peak = card->power = card->limit = card->persistence = ABSENT;
    return card;
}

static nvmlReturn_t read_state(void)
{
    const char *path = getenv("PODYD_LAB_NVML");
    FILE *file = path ? fopen(path, "re") : NULL;
    struct card *card = NULL;
    char line[256];

    state.driver[0] = '\0';
    state.cuda = state.init = state.hangs = 0;
    state.count = 0;
    if (!file)
        return DRIVER_NOT_LOADED;
    while (fgets(line, sizeof line, file)) {
        char *rest;

        line[strcspn(line, "\n")] = '\0';
        rest = line + strcspn(line, " ");
        if (*rest)
            *rest++ = '\0';
        if (!strcmp(line, "gpu"))
            card = state.count < MAX_CARDS ? new_card() : card;
        else if (card)
            read_card_line(card, line, rest);
        else if (!strcmp(line, "driver"))
            snprintf(state.driver, sizeof state.driver, "%s", rest);
        else if (!strcmp(line, "cuda"))
            state.cuda = atoi(rest);
        else if (!strcmp(line, "init"))
            state.init = atoi(rest);
        else if (!strcmp(line, "hangs"))
            state.hangs = 1;
    }
    fclose(file);
    return SUCCESS;
}

/* What every call begins with: the file as it is now, and what fails for all cards. */
static nvmlReturn_t begin(void)
{
    nvmlReturn_t result = read_state();

    while (state.hangs) {
        usleep(20000);
        result = read_state();
    }
    if (result != SUCCESS)
        return result;
    return strcmp(state.driver, DRIVER_VERSION) ? LIB_RM_VERSION_MISMATCH : SUCCESS;
}

static nvmlReturn_t begin_initialised(void)
{
    return initialised ? begin() : UNINITIALIZED;
}

/* A handle is the card's index and one. */
static nvmlReturn_t find(const void *device, const struct card **card)
{
    nvmlReturn_t result = begin_initialised();
    size_t index = (size_t)device - 1;

    if (result != SUCCESS)
        return result;
    if (index >= state.count)
        return INVALID_ARGUMENT;
    *card = &state.cards[index];
    return (*card)->lost ? GPU_IS_LOST : SUCCESS;
}

static nvmlReturn_t give_text(const char *text, char *to, unsigned length)
{
    if (strlen(text) >= length)
        return INSUFFICIENT_SIZE;
    strcpy(to, text);
    return SUCCESS;
}

static nvmlReturn_t give_number(long long value, unsigned *to)
{
    if (value == ABSENT)
        return NOT_SUPPORTED;
    *to = (unsigned)value;
    return SUCCESS;
}

/* --- the library and the driver --- */

nvmlReturn_t nvmlInitWithFlags(unsigned flags)
{
    nvmlReturn_t result = begin();

    (void)flags;
    if (result == SUCCESS)
        result = state.init;
    initialised = result == SUCCESS;
    return result;
}

nvmlReturn_t nvmlInit_v2(void)
{
    return nvmlInitWithFlags(0);
}

nvmlReturn_t nvmlShutdown(void)
{
    if (!initialised)
        return UNINITIALIZED;
    initialised = 0;
    return SUCCESS;
}

const char *nvmlErrorString(nvmlReturn_t result)
{
    static char text[64];

    snprintf(text, sizeof text, "error %d of the stand-in for NVML", result);
    return text;
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned length)
{
    nvmlReturn_t result = begin_initialised();

    return result == SUCCESS ? give_text(state.driver, version, length) : result;
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    nvmlReturn_t result = begin_initialised();

    *version = state.cuda;
    return result;
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version)
{
    return nvmlSystemGetCudaDriverVersion_v2(version);
}

/* --- a card --- */

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count)
{
    nvmlReturn_t result = begin_initialised();

    *count = state.count;
    return result;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device)
{
    const struct card *card;

    *device = (void *)((size_t)index + 1);
    return find(*device, &card);
}

nvmlReturn_t nvmlDeviceGetUUID(void *device, char *uuid, unsigned length)
{
    const struct card *card;
    nvmlReturn_t result = find(device, &card);

    return result == SUCCESS ? give_text(card->uuid, uuid, length) : result;
}

nvmlReturn_t nvmlDeviceGetName(void *device, char *name, unsigned length)
{
    const struct card *card;
    nvmlReturn_t result = find(device, &card);

    return result == SUCCESS ? give_text(card->name, name, length) : result;
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(void *device, nvmlPciInfo_t *info)
{
    const struct card *card;
    nvmlReturn_t result = find(device, &card);

    if (result != SUCCESS)
        return result;
    memset(info, 0, sizeof *info);
    sscanf(card->pci, "%x:%x:%x", &info->domain, &info->bus, &info->device);
    snprintf(info->busIdLegacy, sizeof info->busIdLegacy, "%04X:%02X:%02X.0",
             info->domain & 0xffff, info->bus & 0xff, info->device & 0xff);
    snprintf(info->busId, sizeof info->busId, "%08X:%02X:%02X.0", info->domain, info->bus,
             info->device);
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMinorNumber(void *device, unsigned *minor)
{
    const struct card *card;
    nvmlReturn_t result = find(device, &card);

    return result == SUCCESS ? give_number(card->minor, minor) : result;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(void *device, nvmlMemory_t *memory)
{
    const struct card *card;
    nvmlReturn_t result = find(device, &card);

    if (result != SUCCESS)
        return result;
    if (card->total == ABSENT || card->used == ABSENT)
        return NOT_SUPPORTED;
    memory->total = (unsigned long long)card->total;
    memory->used = (unsigned long long)card->used;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(void *device, nvmlUtilization_t *rates)
{
    const struct card *card;
    nvmlReturn_t result = find(device, &card);

    if (result != SUCCESS)
        return result;
    rates->memory = 0;
    return give_number(card->utilisation, &rates->gpu);
}

nvmlReturn_t nvmlDeviceGetTemperature(void *device, int sensor, unsigned *degrees)
{
    const struct card *card;
    nvmlReturn_t result = find(device, &card);

    if (sensor != 0)
        return INVALID_ARGUMENT;
    return result == SUCCESS ? give_number(card->temperature, degrees) : result;
}

nvmlReturn_t nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts)
{
    const struct card *card;
    nvmlReturn_t result = find(device, &card);

    return result == SUCCESS ? give_number(card->power, milliwatts) : result;
}

nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *milliwatts)
{
    const struct card *card;
    nvmlReturn_t result = find(device, &card);

    return result == SUCCESS ? give_number(card->limit, milliwatts) : result;
}

nvmlReturn_t nvmlDeviceGetPersistenceMode(void *device, unsigned *mode)
{
    const struct card *card;
    nvmlReturn_t result = find(device, &card);

    return result == SUCCESS ? give_number(card->persistence, mode) : result;
}

/* --- the processes on a card --- */

/* The caller asks with *count 0 for how many there are, then with room for them. */
static nvmlReturn_t list(void *device, const char *kind, unsigned *count, nvmlProcessInfo_t *infos)
{
    const struct card *card;
    nvmlReturn_t result = find(device, &card);
    unsigned found = 0, room = *count;

    if (result != SUCCESS)
        return result;
    for (unsigned i = 0; i < card->count; i++) {
        const struct process *process = &card->processes[i];

        if (strcmp(process->kind, kind))
            continue;
        if (found < room) {
            infos[found].pid = process->pid;
            /* ABSENT is NVML_VALUE_NOT_AVAILABLE: all bits set. */
            infos[found].usedGpuMemory = (unsigned long long)process->memory;
            infos[found].gpuInstanceId = infos[found].computeInstanceId = 0xffffffff;
        }
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count,
                                                     nvmlProcessInfo_t *infos)
{
    return list(device, "compute", count, infos);
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *count,
                                                      nvmlProcessInfo_t *infos)
{
    return list(device, "graphics", count, infos);
}

nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses_v3(void *device, unsigned *count,
                                                        nvmlProcessInfo_t *infos)
{
    return list(device, "mps", count, infos);
}

/* The time of the last measurement. */
static unsigned long long last_tick(void)
{
    struct timeval clock;
    unsigned long long now;

    gettimeofday(&clock, NULL);
    now = (unsigned long long)clock.tv_sec * 1000000 + (unsigned long long)clock.tv_usec;
    return now - now % TICK_MICROSECONDS;
}

static unsigned long long sampled(const struct process *process)
{
    return process->sampled ? process->sampled : last_tick();
}

/* How many samples are newer than that. */
static unsigned newer(const struct card *card, unsigned long long since)
{
    unsigned found = 0;

    for (unsigned i = 0; i < card->count; i++)
        found += sampled(&card->processes[i]) > since;
    return found;
}

nvmlReturn_t nvmlDeviceGetProcessUtilization(void *device, nvmlProcessUtilizationSample_t *samples,
                                             unsigned *count, unsigned long long since)
{
    const struct card *card;
    nvmlReturn_t result = find(device, &card);
    unsigned found = 0;

    if (result != SUCCESS)
        return result;
    if (card->no_process_utilisation || card->new_process_utilisation)
        return NOT_SUPPORTED;
    if (!newer(card, since))
        return NOT_FOUND;
    /* And one more: the driver gives old slots of its buffer, too. */
    if (!samples || *count < card->count + 1) {
        *count = card->count + 1;
        return INSUFFICIENT_SIZE;
    }
    memset(samples, 0, *count * sizeof *samples);
    for (unsigned i = 0; i < card->count; i++) {
        const struct process *process = &card->processes[i];

        if (sampled(process) <= since)
            continue;
        samples[found].pid = process->pid;
        samples[found].timeStamp = sampled(process);
        samples[found++].smUtil = since ? process->utilisation : process->in_buffer;
    }
    samples[found].pid = card->processes[0].pid;
    samples[found].smUtil = 100;
    *count = found + 1;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetProcessesUtilizationInfo(void *device,
                                                   nvmlProcessesUtilizationInfo_v1_t *info)
{
    const struct card *card;
    nvmlReturn_t result = find(device, &card);
    unsigned found = 0;

    if (result != SUCCESS)
        return result;
    if (info->version != (sizeof *info | 1 << 24))
        return INVALID_ARGUMENT;
    if (card->no_process_utilisation)
        return NOT_SUPPORTED;
    if (!newer(card, info->lastSeenTimeStamp))
        return NOT_FOUND;
    if (!info->procUtilArray || info->processSamplesCount < card->count) {
        info->processSamplesCount = card->count;
        return INSUFFICIENT_SIZE;
    }
    for (unsigned i = 0; i < card->count; i++) {
        const struct process *process = &card->processes[i];
        nvmlProcessUtilizationInfo_v1_t *sample = &info->procUtilArray[found];

        if (sampled(process) <= info->lastSeenTimeStamp)
            continue;
        memset(sample, 0, sizeof *sample);
        sample->pid = process->pid;
        sample->timeStamp = sampled(process);
        sample->smUtil = info->lastSeenTimeStamp ? process->utilisation : process->in_buffer;
        found++;
    }
    info->processSamplesCount = found;
    return SUCCESS;
}

/* The card's own, of the last three measurements; the peak is the middle one. */
nvmlReturn_t nvmlDeviceGetSamples(void *device, int type, unsigned long long since, int *value_type,
                                  unsigned *count, nvmlSample_t *samples)
{
    const struct card *card;
    nvmlReturn_t result = find(device, &card);
    unsigned long long tick = last_tick();
    unsigned found = 0;

    if (result != SUCCESS)
        return result;
    if (type != GPU_UTILIZATION_SAMPLES || card->utilisation == ABSENT)
        return NOT_SUPPORTED;
    if (tick <= since)
        return NOT_FOUND;
    *value_type = VALUE_TYPE_UNSIGNED_INT;
    if (!samples) {
        *count = CARD_SAMPLES;
        return SUCCESS;
    }
    for (unsigned back = CARD_SAMPLES; back-- > 0 && found < *count;) {
        nvmlSample_t *sample = &samples[found];

        memset(sample, 0, sizeof *sample);
        sample->timeStamp = tick - back * TICK_MICROSECONDS;
        if (sample->timeStamp <= since)
            continue;
        sample->sampleValue.ui =
            (unsigned)(back == 1 && card->peak != ABSENT ? card->peak : card->utilisation);
        found++;
    }
    *count = found;
    return SUCCESS;
}
