/* A stand-in for libnvidia-ml.so.1 in tests: the functions, structures and results that nvml.h documents, no GPU.
   What it answers is set by the test; the signed report comes from a function of the test's. */
#include <string.h>

typedef int nvmlReturn_t;
typedef struct nvmlDevice_st *nvmlDevice_t;

#define NVML_SUCCESS 0
#define NVML_ERROR_UNINITIALIZED 1
#define NVML_ERROR_INVALID_ARGUMENT 2
#define NVML_ERROR_INSUFFICIENT_SIZE 7
#define NVML_ERROR_ARGUMENT_VERSION_MISMATCH 25
#define NVML_STRUCT_VERSION(data, ver) (unsigned int)(sizeof(nvml##data##_v##ver##_t) | (ver << 24U))

typedef struct {
    unsigned int environment, ccFeature, devToolsMode;
} nvmlConfComputeSystemState_t;

typedef struct {
    unsigned int version, environment, ccFeature, devToolsMode, multiGpuMode;
} nvmlSystemConfComputeSettings_v1_t;

typedef struct {
    unsigned int certChainSize, attestationCertChainSize;
    unsigned char certChain[0x1000], attestationCertChain[0x1400];
} nvmlConfComputeGpuCertificate_t;

typedef struct {
    unsigned int isCecAttestationReportPresent, attestationReportSize, cecAttestationReportSize;
    unsigned char nonce[0x20], attestationReport[0x2000], cecAttestationReport[0x1000];
} nvmlConfComputeGpuAttestationReport_t;

_Static_assert(sizeof(nvmlConfComputeSystemState_t) == 12, "state");
_Static_assert(NVML_STRUCT_VERSION(SystemConfComputeSettings, 1) == 0x1000014, "settings");
_Static_assert(sizeof(nvmlConfComputeGpuCertificate_t) == 9224, "certificate");
_Static_assert(sizeof(nvmlConfComputeGpuAttestationReport_t) == 12332, "report");

typedef unsigned int (*attest_t)(unsigned int index, const unsigned char *nonce, unsigned char *report);

/* What the test sets. Results other than NVML_SUCCESS are returned by the function they name. */
struct fake {
    nvmlReturn_t init, settings, state, count, handle, architecture, certificate, report;
    unsigned int environment, ccFeature, devToolsMode, multiGpuMode;
    unsigned int devices, arch, chainSize;
    unsigned char chain[0x1400];
    attest_t attest;
};

struct fake fake;
int fake_open; /* how often it was initialised and not shut down */

nvmlReturn_t nvmlInit_v2(void)
{
    if (fake.init)
        return fake.init;
    fake_open++;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlShutdown(void)
{
    if (!fake_open)
        return NVML_ERROR_UNINITIALIZED;
    fake_open--;
    return NVML_SUCCESS;
}

#ifndef OLD_DRIVER
nvmlReturn_t nvmlSystemGetConfComputeSettings(nvmlSystemConfComputeSettings_v1_t *settings)
{
    if (!fake_open)
        return NVML_ERROR_UNINITIALIZED;
    if (fake.settings)
        return fake.settings;
    if (settings->version != NVML_STRUCT_VERSION(SystemConfComputeSettings, 1))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    settings->environment = fake.environment;
    settings->ccFeature = fake.ccFeature;
    settings->devToolsMode = fake.devToolsMode;
    settings->multiGpuMode = fake.multiGpuMode;
    return NVML_SUCCESS;
}
#endif

nvmlReturn_t nvmlSystemGetConfComputeState(nvmlConfComputeSystemState_t *state)
{
    if (!fake_open)
        return NVML_ERROR_UNINITIALIZED;
    state->environment = fake.environment;
    state->ccFeature = fake.ccFeature;
    state->devToolsMode = fake.devToolsMode;
    return fake.state;
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count)
{
    *count = fake.devices;
    return fake_open ? fake.count : NVML_ERROR_UNINITIALIZED;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
    if (index >= fake.devices)
        return NVML_ERROR_INVALID_ARGUMENT;
    /* A handle of 64 bits: one that is cut to an int is not this device's. */
    *device = (nvmlDevice_t)(0x7f0000000000UL + index);
    return fake.handle;
}

static unsigned long index_of(nvmlDevice_t device)
{
    return (unsigned long)device - 0x7f0000000000UL;
}

nvmlReturn_t nvmlDeviceGetArchitecture(nvmlDevice_t device, unsigned int *arch)
{
    if (index_of(device) >= fake.devices)
        return NVML_ERROR_INVALID_ARGUMENT;
    *arch = fake.arch;
    return fake.architecture;
}

nvmlReturn_t nvmlDeviceGetConfComputeGpuCertificate(nvmlDevice_t device, nvmlConfComputeGpuCertificate_t *found)
{
    if (index_of(device) >= fake.devices)
        return NVML_ERROR_INVALID_ARGUMENT;
    memcpy(found->attestationCertChain, fake.chain, sizeof fake.chain);
    found->attestationCertChainSize = fake.chainSize;
    return fake.certificate;
}

nvmlReturn_t nvmlDeviceGetConfComputeGpuAttestationReport(nvmlDevice_t device, nvmlConfComputeGpuAttestationReport_t *asked)
{
    if (index_of(device) >= fake.devices)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (fake.report)
        return fake.report;
    asked->attestationReportSize = fake.attest(index_of(device), asked->nonce, asked->attestationReport);
    return NVML_SUCCESS;
}
