/*
 * Private memory beside the shared one: conversion by QEMU's own code
 *
 * So on hosts that do not convert guest_memfd in place.  QEMU changes the
 * attributes in the VM, notifies listeners and discards what is not needed any
 * more, under the BQL.  It leaves a range half-way on error, so it is called
 * for a chunk at a time, and a chunk that fails is put back.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "qemu/bitmap.h"
#include "qemu/main-loop.h"
#include "qemu/units.h"
#include "system/kvm.h"
#include "gmem/system/guest-memfd-internal.h"

#define CHUNK_PAGES (GUEST_MEMFD_CHUNK / (4 * KiB))

/* Convert these pages back; they may not all have been converted. */
static void separate_put_back(hwaddr gpa, const unsigned long *changes,
                              uint64_t pages, bool to_private)
{
    const uint64_t page_size = qemu_real_host_page_size();
    uint64_t first, end;

    for (first = find_first_bit(changes, pages); first < pages;
         first = find_next_bit(changes, pages, end)) {
        end = find_next_zero_bit(changes, pages, first);
        kvm_convert_memory(gpa + first * page_size, (end - first) * page_size,
                           to_private);
    }
}

static int separate_convert_chunk(RAMBlock *rb, hwaddr gpa, uint64_t offset,
                                  uint64_t size, bool to_private)
{
    const uint64_t page_size = qemu_real_host_page_size();
    unsigned long changes[BITS_TO_LONGS(CHUNK_PAGES)];
    uint64_t pages = size / page_size;
    int ret;

    BQL_LOCK_GUARD();
    bitmap_copy_with_src_offset(changes, rb->attributes->bitmap,
                                offset / page_size, pages);
    if (!to_private) {
        bitmap_complement(changes, changes, pages);
    }
    ret = kvm_convert_memory(gpa, size, to_private);
    guest_memfd_converted();
    if (ret) {
        separate_put_back(gpa, changes, pages, !to_private);
    }
    return ret;
}

int guest_memfd_separate_convert(RAMBlock *rb, hwaddr gpa, uint64_t offset,
                                 uint64_t size, bool to_private,
                                 const GuestMemfdRetry *retry, uint64_t *done)
{
    uint64_t chunk;

    for (*done = 0; *done < size; *done += chunk) {
        int ret;

        if (*done && guest_memfd_retry_ends(retry)) {
            return -EINTR;
        }
        chunk = MIN(size - *done, GUEST_MEMFD_CHUNK);
        ret = separate_convert_chunk(rb, gpa + *done, offset + *done, chunk,
                                     to_private);
        if (ret) {
            return ret;
        }
    }
    return 0;
}

bool guest_memfd_separate_differs(RAMBlock *rb, uint64_t offset, uint64_t size,
                                  bool private)
{
    const uint64_t page_size = qemu_real_host_page_size();
    uint64_t first = offset / page_size, end = first + size / page_size;
    const unsigned long *shared = rb->attributes->bitmap;

    BQL_LOCK_GUARD();
    return (private ? find_next_bit(shared, end, first)
                    : find_next_zero_bit(shared, end, first)) < end;
}
