/*
 * simkvm: the configuration, and the fault plan in it
 *
 * The environment variable SIMKVM names a file of lines; docs/testing.md
 * lists what they may say.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <stdio.h>
#include <stdlib.h>
#include "simkvm.h"

#define BIT(n) (1u << (n))

SimConfig sim_config = {
    .generation = SIM_G2,
    .strict = true,
    .scramble = true,
};

typedef struct Fault {
    char *call;
    uint64_t vm;                /* calls before its creation do not count */
    uint64_t at;                /* the first call to fail, from 1 */
    uint64_t times;
    uint64_t every;             /* and again after so many; UINT64_MAX: no */
    int error;                  /* positive */
    uint64_t offset;            /* UINT64_MAX: none */
    uint64_t seen;              /* calls so far */
} Fault;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static GArray *faults, *pins;
static const char *path;
static int line_number;

static const struct {
    const char *name;
    int value;
} errnos[] = {
    { "0", 0 }, { "EPERM", EPERM }, { "EINTR", EINTR }, { "EIO", EIO },
    { "E2BIG", E2BIG }, { "EAGAIN", EAGAIN }, { "ENOMEM", ENOMEM },
    { "EFAULT", EFAULT }, { "EBUSY", EBUSY }, { "EEXIST", EEXIST },
    { "ENODEV", ENODEV }, { "EINVAL", EINVAL }, { "ENOSPC", ENOSPC },
    { "ENOTTY", ENOTTY }, { "EOPNOTSUPP", EOPNOTSUPP },
    { "EHWPOISON", EHWPOISON },
};

static const struct {
    const char *name;
    uint32_t type;
} vm_types[] = {
    { "default", KVM_X86_DEFAULT_VM },
    { "sw-protected", KVM_X86_SW_PROTECTED_VM },
    { "snp", KVM_X86_SNP_VM },
    { "tdx", KVM_X86_TDX_VM },
};

void sim_mistake(const char *format, ...)
{
    va_list args;

    fprintf(stderr, "simkvm: %s:%d: ", path, line_number);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(2);
}

const char *sim_option(GPtrArray *words, const char *name)
{
    guint i;

    for (i = 0; i < words->len; i++) {
        const char *word = g_ptr_array_index(words, i);
        size_t n = strlen(name);

        if (!strncmp(word, name, n) && word[n] == '=') {
            g_ptr_array_remove_index(words, i);
            return word + n + 1;
        }
    }
    return NULL;
}

uint64_t sim_number(const char *word)
{
    char *end;
    uint64_t value;

    if (!strcmp(word, "forever")) {
        return UINT64_MAX;
    }
    errno = 0;
    value = g_ascii_strtoull(word, &end, 0);
    if (errno || end == word || *end) {
        sim_mistake("'%s' is not a number", word);
    }
    return value;
}

bool sim_choice(const char *word, const char *yes, const char *no)
{
    if (strcmp(word, yes) && strcmp(word, no)) {
        sim_mistake("'%s' is neither %s nor %s", word, yes, no);
    }
    return !strcmp(word, yes);
}

int sim_errno(const char *name)
{
    size_t i;

    for (i = 0; i < G_N_ELEMENTS(errnos); i++) {
        if (!strcmp(name, errnos[i].name)) {
            return errnos[i].value;
        }
    }
    sim_mistake("'%s' is not an errno that is used here", name);
}

/* Calls whose handlers ask sim_fault() */
static const char *const fault_calls[] = {
    "KVM_CREATE_GUEST_MEMFD", "KVM_PRE_FAULT_MEMORY",
    "KVM_SET_MEMORY_ATTRIBUTES", "KVM_SET_MEMORY_ATTRIBUTES2",
    "KVM_SET_USER_MEMORY_REGION", "SEV_INIT2", "SNP_CPUID_REJECT",
    "SNP_LAUNCH_FINISH", "SNP_LAUNCH_START", "SNP_LAUNCH_UPDATE",
    "SNP_LAUNCH_UPDATE_PAGE", "TDX_CAPABILITIES", "TDX_FINALIZE_VM",
    "TDX_GET_CPUID", "TDX_INIT_MEM_REGION", "TDX_INIT_MEM_REGION_PAGE",
    "TDX_INIT_VCPU", "TDX_INIT_VM", "fallocate", "mmap", NULL
};

/* Calls that fail before their handlers see them: sim_fault_ioctl() */
static const char *const fault_ioctls[] = {
    "KVM_CREATE_IRQCHIP", "KVM_CREATE_VCPU", "KVM_CREATE_VM",
    "KVM_ENABLE_CAP", "KVM_SET_CPUID2", "KVM_SET_IDENTITY_MAP_ADDR",
    "KVM_SET_TSS_ADDR", NULL
};

static void add_fault(GPtrArray *words)
{
    const char *vm = sim_option(words, "vm");
    const char *at = sim_option(words, "at");
    const char *times = sim_option(words, "times");
    const char *every = sim_option(words, "every");
    const char *error = sim_option(words, "errno");
    const char *offset = sim_option(words, "offset");
    Fault fault = {
        .vm = vm ? sim_number(vm) : 0,
        .at = at ? sim_number(at) : 1,
        .times = times ? sim_number(times) : 1,
        .every = every ? sim_number(every) : UINT64_MAX,
        .offset = offset ? sim_number(offset) : UINT64_MAX,
    };

    if (words->len != 1 || !error || !fault.every) {
        sim_mistake("fault CALL errno=NAME [vm=N] [at=N] [times=N|forever] "
                    "[every=N] [offset=BYTES]");
    }
    if (!g_strv_contains(fault_calls, g_ptr_array_index(words, 0)) &&
        !g_strv_contains(fault_ioctls, g_ptr_array_index(words, 0))) {
        sim_mistake("no call named '%s' can be made to fail",
                    (char *)g_ptr_array_index(words, 0));
    }
    fault.error = sim_errno(error);
    fault.call = g_strdup(g_ptr_array_index(words, 0));
    g_array_append_val(faults, fault);
}

static int planned(const char *call, uint64_t *error_offset)
{
    int ret = 0;
    guint i;

    pthread_mutex_lock(&lock);
    for (i = 0; i < faults->len; i++) {
        Fault *f = &g_array_index(faults, Fault, i);

        if (strcmp(f->call, call) || sim_counted(SIM_VMS) < f->vm) {
            continue;
        }
        f->seen++;
        if (!ret && f->seen >= f->at &&
            (f->seen - f->at) % f->every < f->times) {
            ret = -f->error;
            if (error_offset && f->offset != UINT64_MAX) {
                *error_offset = f->offset;
            }
        }
    }
    pthread_mutex_unlock(&lock);
    if (ret) {
        sim_count(SIM_FAULTS_INJECTED, 1);
    }
    return ret;
}

int sim_fault(const char *call, uint64_t *error_offset)
{
    g_assert(g_strv_contains(fault_calls, call));
    return planned(call, error_offset);
}

int sim_fault_ioctl(const char *call)
{
    return g_strv_contains(fault_ioctls, call) ? planned(call, NULL) : 0;
}

void sim_pin(const SimPin *pin)
{
    guint i;

    pthread_mutex_lock(&lock);
    for (i = 0; i < pins->len; i++) {
        if (!g_array_index(pins, SimPin, i).times) {
            g_array_remove_index_fast(pins, i--);
        }
    }
    g_array_append_val(pins, *pin);
    pthread_mutex_unlock(&lock);
}

uint64_t sim_pinned(uint64_t file, uint64_t offset, uint64_t size)
{
    uint64_t first = UINT64_MAX;
    SimPin *pin = NULL;
    guint i;

    pthread_mutex_lock(&lock);
    for (i = 0; i < pins->len; i++) {
        SimPin *p = &g_array_index(pins, SimPin, i);

        if (p->times && p->file == file && p->offset < offset + size &&
            offset < p->offset + p->size && MAX(p->offset, offset) < first) {
            first = MAX(p->offset, offset);
            pin = p;
        }
    }
    if (pin && pin->times != UINT64_MAX) {
        pin->times--;
    }
    pthread_mutex_unlock(&lock);
    if (pin) {
        sim_count(SIM_PINS_MET, 1);
    }
    return first;
}

int sim_refuse(int error, const char *format, ...)
{
    va_list args;
    char *text;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    if (sim_config.strict) {
        sim_violation("%s", text);
    }
    g_free(text);
    return -error;
}

static void set_vm_types(GPtrArray *words)
{
    guint i;
    size_t t;

    sim_config.vm_types = 0;
    for (i = 0; i < words->len; i++) {
        const char *word = g_ptr_array_index(words, i);

        for (t = 0; t < G_N_ELEMENTS(vm_types); t++) {
            if (!strcmp(word, vm_types[t].name)) {
                sim_config.vm_types |= BIT(vm_types[t].type);
                break;
            }
        }
        if (t == G_N_ELEMENTS(vm_types)) {
            sim_mistake("'%s' is no VM type; there are default, sw-protected, "
                        "snp and tdx", word);
        }
    }
}

static void parse_pin(GPtrArray *words)
{
    const char *file = sim_option(words, "file");
    const char *times = sim_option(words, "times");
    SimPin pin = {
        .file = file ? sim_number(file) : 0,
        .times = times ? sim_number(times) : 1,
    };

    if (words->len != 2) {
        sim_mistake("pin OFFSET SIZE [file=N] [times=N|forever]");
    }
    pin.offset = sim_number(g_ptr_array_index(words, 0));
    pin.size = sim_number(g_ptr_array_index(words, 1));
    sim_pin(&pin);
}

/* Takes a line that sets one value.  Returns false if it is another line. */
static bool parse_setting(const char *verb, GPtrArray *words)
{
    const char *word = words->len ? g_ptr_array_index(words, 0) : "";

    if (!strcmp(verb, "vm-types")) {
        set_vm_types(words);
        return true;
    }
    if (!strcmp(verb, "mode")) {
        sim_config.kvm = sim_choice(word, "kvm", "script");
    } else if (!strcmp(verb, "generation")) {
        if (strlen(word) != 2 || word[0] != 'g' || word[1] < '0' ||
            word[1] > '2') {
            sim_mistake("generation g0, g1 or g2, not '%s'", word);
        }
        sim_config.generation = word[1] - '0';
    } else if (!strcmp(verb, "strict")) {
        sim_config.strict = sim_choice(word, "on", "off");
    } else if (!strcmp(verb, "scramble")) {
        sim_config.scramble = sim_choice(word, "on", "off");
    } else if (!strcmp(verb, "log")) {
        sim_config.log = g_strdup(word);
    } else if (!strcmp(verb, "report")) {
        sim_config.report = g_strdup(word);
    } else if (!strcmp(verb, "control")) {
        sim_config.control = g_strdup(word);
    } else {
        return false;
    }
    if (words->len != 1) {
        sim_mistake("%s takes one value", verb);
    }
    return true;
}

void sim_config_load(void)
{
    /* The vCPU whose script the lines are; -1: all; -2: none. */
    int vcpu = -2;
    char *line = NULL;
    size_t size = 0;
    size_t t;
    FILE *f;

    for (t = 0; t < G_N_ELEMENTS(vm_types); t++) {
        sim_config.vm_types |= BIT(vm_types[t].type);
    }
    faults = g_array_new(FALSE, FALSE, sizeof(Fault));
    pins = g_array_new(FALSE, FALSE, sizeof(SimPin));
    path = getenv("SIMKVM");
    if (!path) {
        return;
    }
    f = fopen(path, "r");
    if (!f) {
        fprintf(stderr, "simkvm: cannot read %s, which SIMKVM names: %s\n",
                path, strerror(errno));
        exit(2);
    }
    while (getline(&line, &size, f) > 0) {
        GPtrArray *words = g_ptr_array_new();
        char *rest = line, *word;
        const char *verb;

        line_number++;
        line[strcspn(line, "#\n")] = '\0';
        while ((word = strsep(&rest, " \t"))) {
            if (*word) {
                g_ptr_array_add(words, word);
            }
        }
        if (words->len) {
            verb = g_ptr_array_remove_index(words, 0);
            if (!strcmp(verb, "vcpu") && words->len == 1) {
                word = g_ptr_array_index(words, 0);
                vcpu = strcmp(word, "all") ? (int)sim_number(word) : -1;
            } else if (vcpu != -2) {
                sim_script_add(vcpu, verb, words);
            } else if (!strcmp(verb, "fault")) {
                add_fault(words);
            } else if (!strcmp(verb, "pin")) {
                parse_pin(words);
            } else if (!parse_setting(verb, words)) {
                sim_mistake("'%s' is not known here", verb);
            }
        }
        g_ptr_array_free(words, TRUE);
    }
    free(line);
    fclose(f);
}
