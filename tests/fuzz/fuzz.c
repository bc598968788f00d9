/*
 * The exit path under libFuzzer
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "qemu/thread.h"
#include "exits.h"

typedef struct Input {
    const uint8_t *data;
    size_t size;
} Input;

static void *run_vcpu(void *opaque)
{
    const Input *input = opaque;

    guest_run(input->data, input->size, true);
    return NULL;
}

/* A new thread has no state from the exits of earlier inputs. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size) {
        Input input = { data + 1, size - 1 };
        QemuThread vcpu;

        guest_begin(data[0] % GUEST_TYPES);
        qemu_thread_create(&vcpu, "vcpu", run_vcpu, &input,
                           QEMU_THREAD_JOINABLE);
        qemu_thread_join(&vcpu);
        guest_end();
    }
    return 0;
}
