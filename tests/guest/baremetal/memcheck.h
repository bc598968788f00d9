/*
 * Interface of start.S and memcheck.c
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef MEMCHECK_H
#define MEMCHECK_H

#include <stdint.h>

/* Real-mode code for the other processors, copied to where they start. */
extern char trampoline[], trampoline_end[];
/* Number of processors that have passed it. */
extern uint32_t cpus_started;

/* On the first processor; @info: the Multiboot information. */
void boot_main(const uint32_t *info);
/* On each processor. */
void cpu_main(uint32_t cpu);

#endif
