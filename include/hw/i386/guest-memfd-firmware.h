/*
 * Firmware and kernel of confidential guests: what QEMU calls before it reads
 * them
 *
 * guest_memfd_check_*() end QEMU with the reason if the guest cannot be
 * launched with what was given, where QEMU itself would crash or not say why.
 * They leave other guests alone.  All functions are called with the BQL held.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef HW_I386_GUEST_MEMFD_FIRMWARE_H
#define HW_I386_GUEST_MEMFD_FIRMWARE_H

#include "hw/core/boards.h"

/**
 * guest_memfd_check_bios: can the file of -bios be firmware?
 * @ms: the machine
 * @name: what the user has named
 * @file: its path, NULL if it was not found
 */
void guest_memfd_check_bios(const MachineState *ms, const char *name,
                            const char *file);

/** guest_memfd_check_pflash: can the firmware be in a flash device? */
void guest_memfd_check_pflash(const MachineState *ms);

/** guest_memfd_check_kernel: can -kernel and -initrd be what they name? */
void guest_memfd_check_kernel(const MachineState *ms);

/**
 * guest_memfd_check_tables: can the guest be launched with this firmware?
 * @image: it is loaded, and nothing of it is parsed
 * @size: bytes
 */
void guest_memfd_check_tables(const void *image, int size);

/**
 * guest_memfd_forget_table: free QEMU's copy of the firmware's table
 * @end: where the copy ends, or NULL; becomes NULL
 * @size: of the copy in bytes; becomes 0
 *
 * QEMU parses the table again when a reset has loaded the firmware again.
 */
void guest_memfd_forget_table(uint8_t **end, int *size);

/**
 * guest_memfd_has_tables: is the firmware loaded, and its tables parsed?
 *
 * Returns: false with @errp set if not: hashes of a kernel need them.
 */
bool guest_memfd_has_tables(Error **errp);

/**
 * guest_memfd_reload_firmware: can the firmware of @ms be loaded again?
 *
 * The file may be another one by now.  Called before the guest gets a new VM.
 * Returns: 0; or -errno, and the reason was reported.
 */
int guest_memfd_reload_firmware(MachineState *ms);

#endif
