/*
 * The exit path, from several vCPUs at a time
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "qemu/thread.h"
#include "exits.h"

#define VCPUS 4
#define ROUNDS 200
#define BYTES 3000

static void *run_vcpu(void *opaque)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed((uintptr_t)opaque);
    uint8_t data[BYTES];
    unsigned i;

    for (i = 0; i < BYTES; i++) {
        data[i] = g_rand_int(rand);
    }
    guest_run(data, BYTES, false);
    return NULL;
}

int main(int argc, char **argv)
{
    uintptr_t seed = argc > 1 ? atoi(argv[1]) : 1;
    unsigned round, i;

    for (round = 0; round < ROUNDS; round++) {
        QemuThread vcpus[VCPUS];

        guest_begin(round % GUEST_TYPES);
        for (i = 0; i < VCPUS; i++) {
            qemu_thread_create(&vcpus[i], "vcpu", run_vcpu, (void *)seed++,
                               QEMU_THREAD_JOINABLE);
        }
        for (i = 0; i < VCPUS; i++) {
            qemu_thread_join(&vcpus[i]);
        }
        guest_end();
    }
    return 0;
}
