/*
 * Processors: from their first C code to the end of the run
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <stddef.h>
#include "firmware.h"
#include "io.h"

#define FW_CFG_CPUS     0x05            /* two bytes, little-endian */
#define LIST_NAME       "opt/guest-memfd/commands"
#define LIST_SIZE       0x8000

#define APIC_ICR        0xfee00300
#define ALL_OTHERS      0x000c0000
#define INIT            0x00004500
#define STARTUP         0x00004600

#define CODE_SEGMENT    24
#define INTERRUPT_GATE  0x8e00
#define EXCEPTIONS      32

typedef struct Gate {
    uint16_t offset_0, segment, type, offset_16;
    uint32_t offset_32, zero;
} Gate;

/* On the stack of the vCPU. */
typedef struct Frame {
    uint64_t vector, error, rip;
} Frame;

int cpus;
uint32_t mapped_gib;
bool model_present;

static Gate exceptions[EXCEPTIONS];
static char list_text[LIST_SIZE];
static int online;                      /* vCPUs that came up */
static int finished;
static bool prepared;                   /* vCPUs may run the list */
static bool run_over;

void idle(void)
{
    for (;;) {
        relax();
    }
}

void stop_run(void)
{
    __atomic_store_n(&run_over, true, __ATOMIC_RELEASE);
}

bool run_is_over(void)
{
    return __atomic_load_n(&run_over, __ATOMIC_ACQUIRE);
}

void finish(int cpu)
{
    if (__atomic_add_fetch(&finished, 1, __ATOMIC_ACQ_REL) == cpus) {
        say_done(cpu);
    }
    idle();
}

void exception_main(const Frame *frame)
{
    /* There is one stack a vCPU, and this is on it. */
    int cpu = ((uint64_t)frame - STACKS) >> STACK_SHIFT;
    uint64_t cr2;

    asm volatile("movq %%cr2, %0" : "=r"(cr2));
    fail(cpu, NULL, "exception %ld error 0x%lx at 0x%lx, cr2 0x%lx",
            frame->vector, frame->error, frame->rip, cr2);
    stop_run();
    finish(cpu);
}

static void prepare_exceptions(void)
{
    uint64_t stub = (uint64_t)exception_stubs;
    int i;

    for (i = 0; i < EXCEPTIONS; i++, stub += 16) {
        exceptions[i] = (Gate) {
            .offset_0 = stub,
            .segment = CODE_SEGMENT,
            .type = INTERRUPT_GATE,
            .offset_16 = stub >> 16,
            .offset_32 = stub >> 32,
        };
    }
}

static void take_exceptions(void)
{
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) table = {
        sizeof(exceptions) - 1, (uint64_t)exceptions
    };

    asm volatile("lidt %0" : : "m"(table));
}

static void count_cpus(void)
{
    uint16_t count;

    fw_cfg_select(FW_CFG_CPUS);
    fw_cfg_read(&count, sizeof(count));
    cpus = count;
}

static bool read_list(void)
{
    uint16_t key;
    uint32_t size = fw_cfg_find(LIST_NAME, &key);

    if (!size) {
        fail(0, NULL, "fw_cfg has nothing in " LIST_NAME);
        return false;
    }
    if (size > LIST_SIZE) {
        fail(0, NULL, "the list has more than %d bytes", LIST_SIZE);
        return false;
    }
    fw_cfg_select(key);
    fw_cfg_read(list_text, size);
    return parse_list(list_text, size);
}

static void copy_start16(void)
{
    char *to = (char *)TRAMPOLINE;
    const char *from;

    for (from = start16; from < start16_end; from++) {
        *to++ = *from;
    }
}

/* Returns when all of them are in cpu_main(). */
static void start_others(void)
{
    store(APIC_ICR, 4, ALL_OTHERS | INIT);
    store(APIC_ICR, 4, ALL_OTHERS | STARTUP | TRAMPOLINE >> 12);
    store(APIC_ICR, 4, ALL_OTHERS | STARTUP | TRAMPOLINE >> 12);
    while (__atomic_load_n(&online, __ATOMIC_ACQUIRE) < cpus - 1) {
        relax();
    }
}

/* On the first vCPU, before any other has started.  Can the list be run? */
static bool prepare(void)
{
    count_cpus();
    prepare_exceptions();
    take_exceptions();
    copy_start16();
    model_present = port_in(MODEL_PORT, 1) == MODEL_PRESENT;
    if (cpus > MAX_CPUS) {
        fail(0, NULL, "there are more than %d vCPUs", MAX_CPUS);
        return false;
    }
    if (!read_list()) {
        return false;
    }
    start_others();
    return true;
}

void cpu_main(int number)
{
    if (number == 0) {
        if (!prepare()) {
            say_done(0);
            idle();
        }
        __atomic_store_n(&prepared, true, __ATOMIC_RELEASE);
    } else {
        take_exceptions();
        __atomic_add_fetch(&online, 1, __ATOMIC_ACQ_REL);
        while (!__atomic_load_n(&prepared, __ATOMIC_ACQUIRE)) {
            relax();
        }
    }
    run_list(number);
    finish(number);
}
