/*
 * A guest that does what bytes say; see exits.c
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef FUZZ_EXITS_H
#define FUZZ_EXITS_H

/* GuestType: the platform, and where private memory is */
typedef enum GuestType {
    GUEST_SNP,
    GUEST_TDX,
    GUEST_SW_PROTECTED,
    GUEST_SEPARATE,     /* its private memory is not converted in place */
    GUEST_ORDINARY,
    GUEST_TYPES,
} GuestType;

/** guest_begin: memory and listeners of a new guest; all of it is shared. */
void guest_begin(GuestType type);

/**
 * guest_run: what one vCPU, which the calling thread becomes, does
 * @data: @size bytes: its exits from the front, and answers of the kernel and
 *        of listeners from the back, until they meet
 * @alone: no other thread converts, so each answer can be foretold
 */
void guest_run(const uint8_t *data, size_t size, bool alone);

/** guest_end: check that all states agree, and free the guest. */
void guest_end(void);

/* fuzz.c: what libFuzzer calls, with an input of @size bytes */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
