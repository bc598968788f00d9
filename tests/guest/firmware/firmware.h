/*
 * Guest firmware that obeys a list of commands: what its files share
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef FIRMWARE_H
#define FIRMWARE_H

#include <stdbool.h>
#include <stdint.h>
#include "memory.h"
#include "services.h"

#define PAGE            4096
#define LOOP_DEPTH      4

typedef enum State {
    SHARED,
    PRIVATE,
    NO_GUEST_MEMFD,
} State;

typedef enum Method {
    BY_AUTO,                    /* the port, if there is a model */
    BY_PORT,
    BY_VMMCALL,
} Method;

typedef enum Expectation {
    EXPECT_NOTHING,             /* the command's own default */
    EXPECT_VALUE,
    EXPECT_ERRNO,               /* that value, or its negative */
    EXPECT_ANY,
} Expectation;

typedef struct Command Command;
typedef struct Cpu Cpu;

/* The vCPUs that run a command; all run a loop, too. */
typedef enum Reach {
    BY_SETTING,
    FOR_ALL,
    LOOP_BEGIN,
    LOOP_END,
} Reach;

typedef struct Verb {
    const char *name;
    const char *words;          /* what follows; see verbs */
    void (*run)(Cpu *cpu, const Command *c);
    Reach reach;
} Verb;

struct Command {
    const Verb *verb;
    const char *text;           /* in the list, of @length bytes */
    int length;
    int line;
    uint32_t cpus;              /* bit n: vCPU n runs it */
    uint64_t arg[4];            /* the numbers of its words, in order */
    int state;                  /* enum State */
    Expectation expect;
    uint64_t expected;
    bool convert;               /* not only writes and checks */
    int method;                 /* enum Method */
    int preserve;               /* conversions keep contents */
    uint64_t timeout;           /* for devices, in millions of TSC cycles */
    int device;                 /* which of device_names */
    int in;                     /* to memory, else from it */
    int rings;                  /* the device's rings are there, too */
    int depth;                  /* loops around it */
    const Command *other_end;   /* of a loop */
};

struct Cpu {
    int number;
    const Command *at;
    uint64_t rounds[LOOP_DEPTH];
};

/* --- console.c: the debug console, a line at a time --- */

/* Formats are of %s, %.*s, %d, %ld and %lx. */

/* "ok" and the command */
void ok(int cpu, const Command *c);
void ok_saying(int cpu, const Command *c, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* "FAIL", the command unless @c is NULL, and the reason; counts it */
void fail(int cpu, const Command *c, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Print the number of failures, and that the run has ended. */
void say_done(int cpu);

/* --- start.S --- */

/* Position-independent real-mode code */
extern const char start16[], start16_end[], hypercall[];
extern const char exception_stubs[];

/* --- fw_cfg.c: the emulator's files --- */

/* *key: what to select.  Returns the size in bytes, or 0. */
uint32_t fw_cfg_find(const char *name, uint16_t *key);
void fw_cfg_select(uint16_t key);
/* Of what is selected, from where the last one ended. */
void fw_cfg_read(void *to, uint32_t size);

/* --- main.c: processors --- */

/* On each vCPU. */
void cpu_main(int number) __attribute__((noreturn));
/* @frame: what exception_stubs put on the stack */
struct Frame;
void exception_main(const struct Frame *frame) __attribute__((noreturn));

extern int cpus;
/* GiB of memory that are mapped. */
extern uint32_t mapped_gib;
extern bool model_present;

/* This vCPU has nothing more to do; the last one ends the run. */
void finish(int cpu) __attribute__((noreturn));
/* Let no vCPU begin another command. */
void stop_run(void);
bool run_is_over(void);
void idle(void) __attribute__((noreturn));

/* --- list.c: the list of commands --- */

/*
 * Read @size bytes at @text, which have to stay.  Prints a mistake and returns
 * false.
 */
bool parse_list(const char *text, uint32_t size);
/* The first of them; the last one has no verb. */
extern const Command *const commands;
/* By enum State; the last one is NULL. */
extern const char *const state_names[];

/* --- run.c: the commands --- */

extern const Verb verbs[];      /* the last one has no name */

void run_list(int number);
/* Has a vCPU come to a barrier, and not passed it yet? */
bool somebody_waits(void);

/* --- memory.c: contents and state of guest memory --- */

/* Report a word that has another value than expected. */
typedef struct Wrong {
    uint64_t gpa, wanted, found;
} Wrong;

/*
 * Every @stride bytes is a word that depends on its gpa and @seed, and no two
 * are the same.  Where the host emulates every instruction, as with shadow
 * paging, a word takes 2 to 4 us.
 */
#define EVERY_WORD      8
void fill_pages(uint64_t gpa, uint64_t pages, uint64_t seed, uint64_t stride);
bool pages_are_filled(uint64_t gpa, uint64_t pages, uint64_t seed,
                      uint64_t stride, Wrong *wrong);
bool pages_are_zero(uint64_t gpa, uint64_t pages, Wrong *wrong);

/* Returns the hypercall's result. */
int64_t convert_pages(Method method, uint64_t gpa, uint64_t pages,
                      State state);
/* Is there a model? */
int64_t ask_model(uint64_t service, uint64_t gpa, uint64_t pages,
                  uint64_t argument);

/* A number that looks random, for each x. */
uint64_t scramble(uint64_t x);

/* --- random.c --- */

void run_random(Cpu *cpu, const Command *c);

/* --- hostile.c --- */

void run_hostile(Cpu *cpu, const Command *c);

/* --- dma.c --- */

/* The last one is NULL. */
extern const char *const device_names[];

void run_dma(Cpu *cpu, const Command *c);
void run_alternate(Cpu *cpu, const Command *c);

#endif
