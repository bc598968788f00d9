/*
 * The exit path under libFuzzer
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "exits.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size) {
        guest_begin(data[0] % GUEST_TYPES);
        guest_run(data + 1, size - 1, true);
        guest_end();
    }
    return 0;
}
