/*
 * The commands
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <stddef.h>
#include "firmware.h"
#include "io.h"

#define DEBUG_EXIT_PORT 0xf4
#define RESET_PORT      0xcf9
#define RESET_ALL       6

static void report_wrong(Cpu *cpu, const Command *c, const Wrong *wrong)
{
    fail(cpu->number, c, "gpa 0x%lx wanted 0x%lx found 0x%lx",
         wrong->gpa, wrong->wanted, wrong->found);
}

static void run_write(Cpu *cpu, const Command *c)
{
    fill_pages(c->arg[0], c->arg[1], c->arg[2], EVERY_WORD);
    ok(cpu->number, c);
}

static void run_check(Cpu *cpu, const Command *c)
{
    Wrong wrong;

    if (pages_are_filled(c->arg[0], c->arg[1], c->arg[2], EVERY_WORD,
                         &wrong)) {
        ok(cpu->number, c);
    } else {
        report_wrong(cpu, c, &wrong);
    }
}

static void run_check_zero(Cpu *cpu, const Command *c)
{
    Wrong wrong;

    if (pages_are_zero(c->arg[0], c->arg[1], &wrong)) {
        ok(cpu->number, c);
    } else {
        report_wrong(cpu, c, &wrong);
    }
}

static void run_convert(Cpu *cpu, const Command *c)
{
    int64_t ret = 0, wanted = c->expected;

    if (c->method == BY_PORT && !model_present) {
        fail(cpu->number, c, "there is no model");
        return;
    }
    ret = convert_pages(c->method, c->arg[0], c->arg[1], c->state);
    if (c->expect == EXPECT_ANY || ret == wanted ||
        (c->expect == EXPECT_ERRNO && ret == -wanted)) {
        if (ret) {
            ok_saying(cpu->number, c, "%ld", ret);
        } else {
            ok(cpu->number, c);
        }
    } else {
        fail(cpu->number, c, "returned %ld", ret);
    }
}

/* Only the first failure is printed. */
static void run_convert_times(Cpu *cpu, const Command *c)
{
    uint64_t i;
    int64_t ret = 0;

    if (c->method == BY_PORT && !model_present) {
        fail(cpu->number, c, "there is no model");
        return;
    }
    for (i = 0; i < 2 * c->arg[2] && !ret; i++) {
        ret = convert_pages(c->method, c->arg[0], c->arg[1], i & 1);
    }
    if (ret) {
        fail(cpu->number, c, "returned %ld", ret);
    } else {
        ok(cpu->number, c);
    }
}

static void run_clock(Cpu *cpu, const Command *c)
{
    uint32_t low, high;

    asm volatile("rdtsc" : "=a"(low), "=d"(high));
    ok_saying(cpu->number, c, "%ld", (uint64_t)high << 32 | low);
}

static void run_access(Cpu *cpu, const Command *c)
{
    uint64_t gpa;
    int64_t ret;

    if (!model_present) {
        fail(cpu->number, c, "there is no model");
        return;
    }
    ret = ask_model(MODEL_ACCESS, c->arg[0], c->arg[1], c->state);
    if (ret) {
        fail(cpu->number, c, "returned %ld", ret);
        return;
    }
    for (gpa = c->arg[0]; gpa < c->arg[0] + c->arg[1] * PAGE; gpa += PAGE) {
        load(gpa, 1);
    }
    ok(cpu->number, c);
}

static void run_state(Cpu *cpu, const Command *c)
{
    uint64_t gpa;
    int64_t state;

    if (!model_present) {
        fail(cpu->number, c, "there is no model");
        return;
    }
    for (gpa = c->arg[0]; gpa < c->arg[0] + c->arg[1] * PAGE; gpa += PAGE) {
        state = ask_model(MODEL_STATE, gpa, 1, 0);
        if (state != c->state) {
            fail(cpu->number, c, "gpa 0x%lx is %s", gpa, state_names[state]);
            return;
        }
    }
    ok(cpu->number, c);
}

static void report_value(Cpu *cpu, const Command *c, uint64_t value)
{
    if (c->expect == EXPECT_VALUE && value != c->expected) {
        fail(cpu->number, c, "found 0x%lx", value);
    } else {
        ok_saying(cpu->number, c, "0x%lx", value);
    }
}

static void run_in(Cpu *cpu, const Command *c)
{
    report_value(cpu, c, port_in(c->arg[0], c->arg[1]));
}

static void run_out(Cpu *cpu, const Command *c)
{
    port_out(c->arg[0], c->arg[1], c->arg[2]);
    ok(cpu->number, c);
}

static void run_mmio_read(Cpu *cpu, const Command *c)
{
    report_value(cpu, c, load(c->arg[0], c->arg[1]));
}

static void run_mmio_write(Cpu *cpu, const Command *c)
{
    store(c->arg[0], c->arg[1], c->arg[2]);
    ok(cpu->number, c);
}

/* At a barrier. */
static int arrived;

bool somebody_waits(void)
{
    return __atomic_load_n(&arrived, __ATOMIC_ACQUIRE);
}

static void run_barrier(Cpu *cpu, const Command *c)
{
    static uint32_t times;
    uint32_t before = __atomic_load_n(&times, __ATOMIC_ACQUIRE);

    if (__atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL) == cpus) {
        __atomic_store_n(&arrived, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&times, before + 1, __ATOMIC_RELEASE);
    }
    while (__atomic_load_n(&times, __ATOMIC_ACQUIRE) == before) {
        if (run_is_over()) {
            return;
        }
        relax();
    }
    ok(cpu->number, c);
}

static void run_repeat(Cpu *cpu, const Command *c)
{
    cpu->rounds[c->depth] = c->arg[0];
    if (!c->arg[0]) {
        cpu->at = c->other_end;
    }
}

static void run_end(Cpu *cpu, const Command *c)
{
    if (--cpu->rounds[c->depth]) {
        cpu->at = c->other_end;
    }
}

static void run_hlt(Cpu *cpu, const Command *c)
{
    ok(cpu->number, c);
    for (;;) {
        asm volatile("hlt");
    }
}

static void run_reset(Cpu *cpu, const Command *c)
{
    ok(cpu->number, c);
    port_out(RESET_PORT, 1, RESET_ALL);
    idle();
}

static void run_exit(Cpu *cpu, const Command *c)
{
    ok(cpu->number, c);
    port_out(DEBUG_EXIT_PORT, 4, c->arg[0]);
    idle();
}

/* An exception without a handler: a triple fault. */
static void run_shutdown(Cpu *cpu, const Command *c)
{
    static const uint8_t no_table[10];

    ok(cpu->number, c);
    asm volatile("lidt %0\n\tud2" : : "m"(no_table));
}

/*
 * Those without a function hold for the commands below them.  The letters stand
 * for the words that follow the verb:
 *
 *   n   a number
 *   r   a gpa and a number of pages, mapped
 *   w   the same, and none of the firmware's own
 *   p   size of an access to a port: 1, 2 or 4
 *   m   size of an access to memory: also 8
 *   s   "shared" or "private"
 *   S   or "none"
 *   e   nothing, or "expect" and: a number, the name of an error, "any"
 *   l   nothing, or "no-convert"
 *   C   number of a vCPU, or "all"
 *   H   "auto", "port" or "vmmcall"
 *   t   a number of millions of cycles
 *   D   a device, one of device_names
 *   R   "buffer" or "rings"
 *   d   "in" or "out"
 *   P   "on" or "off"
 */
const Verb verbs[] = {
    /* vCPUs that run the commands; without it, vCPU 0. */
    { "cpu", "C" },
    /* How "convert" and "random" ask; without it, "auto". */
    { "hypercall-by", "H" },
    /* Does a conversion keep contents?  Without it, no. */
    { "preserve", "P" },
    /* How long "dma" waits for a device; without it, minutes. */
    { "timeout", "t" },

    /* For all vCPUs, whatever "cpu" says. */
    { "barrier", "", run_barrier, FOR_ALL },
    { "repeat", "n", run_repeat, LOOP_BEGIN },
    { "end", "", run_end, LOOP_END },

    { "write", "wn", run_write },
    { "check", "rn", run_check },
    { "check-zero", "r", run_check_zero },
    /* Any gpa and any number of pages; 0 is expected. */
    { "convert", "nnse", run_convert },
    /* To shared and back, so many times. */
    { "convert-times", "rn", run_convert_times },
    /* The processor's time stamp. */
    { "clock", "", run_clock },
    /* Declare to the model how this vCPU takes pages to be, and touch them. */
    { "access", "rs", run_access },
    /* Ask the model. */
    { "state", "rS", run_state },
    /* Seed, number of steps, range. */
    { "random", "nnwl", run_random },
    /* The same, of odd requests; with "expect" all are answered like that. */
    { "hostile", "nnwe", run_hostile },
    /*
     * Seed, range.  Until another vCPU is at a barrier: convert parts of it,
     * and write to those that are private now.
     */
    { "alternate", "nw", run_alternate },

    /*
     * Device, use of the range, range, direction, how many times.  "in" is to
     * memory.  With "rings", the first 4 pages are the device's rings.
     * Transfers may fail, unless a number of successful ones is expected.
     */
    { "dma", "DRwdne", run_dma },

    { "in", "npe", run_in },
    { "out", "npn", run_out },
    { "mmio-read", "nme", run_mmio_read },
    { "mmio-write", "nmn", run_mmio_write },

    /* They do not come back. */
    { "hlt", "", run_hlt },
    { "reset", "", run_reset },
    { "exit", "n", run_exit },
    { "shutdown", "", run_shutdown },
    { }
};

void run_list(int number)
{
    Cpu cpu = { .number = number };

    for (cpu.at = commands; cpu.at->verb && !run_is_over(); cpu.at++) {
        const Command *c = cpu.at;

        if (c->verb->reach != BY_SETTING || c->cpus & 1u << number) {
            c->verb->run(&cpu, c);
        }
    }
}
