/*
 * Firmware of a confidential guest that gets a new VM
 *
 * QEMU loads it from its file again, into memory that was made for the file as
 * it was when QEMU started.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "hw/core/loader.h"
#include "hw/i386/x86.h"
#include "qemu/datadir.h"
#include "qemu/error-report.h"
#include "gmem/target/i386/guest-memfd-launch.h"

int guest_memfd_check_firmware(MachineState *ms)
{
    X86MachineState *x86ms = (X86MachineState *)
        object_dynamic_cast(OBJECT(ms), TYPE_X86_MACHINE);
    uint64_t size = x86ms ? memory_region_size(&x86ms->bios) : 0;
    const char *name = ms->firmware ?: "bios.bin";
    g_autofree char *file = NULL;
    int64_t found;

    if (!ms->cgs || !size || x86ms->igvm) {
        return 0;
    }
    file = qemu_find_file(QEMU_FILE_TYPE_BIOS, name);
    found = file ? get_image_size(file, NULL) : -1;
    if (found == size) {
        return 0;
    }
    if (found < 0) {
        error_report("the guest cannot be reset, because its firmware '%s' "
                     "cannot be read any more; put it back and reset again",
                     name);
        return -ENOENT;
    }
    error_report("the guest cannot be reset, because its firmware '%s' has "
                 "0x%" PRIx64 " bytes now, and had 0x%" PRIx64 " when QEMU "
                 "started; put the old one back and reset again", name,
                 (uint64_t)found, size);
    return -EINVAL;
}
