/*
 * RAM blocks that are a KVM guest_memfd: which pages are shared
 *
 * The kernel cannot be asked for the state of a page, so this bitmap is the
 * only record.  guest-memfd-convert.c changes it, and guest-memfd-access.c on
 * its behalf.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "qemu/bitmap.h"
#include "qemu/host-utils.h"
#include "qemu/lockable.h"
#include "gmem/system/guest-memfd-internal.h"

void guest_memfd_state_init(GuestMemfd *gmem, bool can_be_private)
{
    GuestMemfdState *s = &gmem->state;

    qemu_mutex_init(&s->lock);
    s->pages = gmem->rb->max_length / qemu_real_host_page_size();
    if (can_be_private) {
        s->shared = bitmap_new(s->pages);
        bitmap_set(s->shared, 0, s->pages);
    }
}

void guest_memfd_state_destroy(GuestMemfd *gmem)
{
    g_free(gmem->state.shared);
    qemu_mutex_destroy(&gmem->state.lock);
}

void guest_memfd_state_hide(GuestMemfd *gmem)
{
    GuestMemfdState *s = &gmem->state;

    if (s->shared) {
        QEMU_LOCK_GUARD(&s->lock);
        guest_memfd_hide(gmem, 0, s->pages);
    }
}

void guest_memfd_state_reset(GuestMemfd *gmem)
{
    GuestMemfdState *s = &gmem->state;

    if (s->shared) {
        QEMU_LOCK_GUARD(&s->lock);
        s->to_private = s->to_shared = 0;
        s->busy = s->busy_page = 0;
        s->warned = false;
        s->launching = guest_memfd_is_launching();
        guest_memfd_state_set(gmem, 0, s->pages, true);
    }
}

void guest_memfd_state_launched(GuestMemfd *gmem)
{
    QEMU_LOCK_GUARD(&gmem->state.lock);
    gmem->state.launching = false;
}

void guest_memfd_state_set(GuestMemfd *gmem, uint64_t first, uint64_t end,
                           bool shared)
{
    unsigned long *map = gmem->state.shared;

    while (first < end) {
        uint64_t next = MIN(end, QEMU_ALIGN_DOWN(first, BITS_PER_LONG) +
                                 BITS_PER_LONG);
        unsigned long bits = BITMAP_FIRST_WORD_MASK(first) &
                             BITMAP_LAST_WORD_MASK(next);

        if (shared) {
            qatomic_or(&map[BIT_WORD(first)], bits);
        } else {
            qatomic_and(&map[BIT_WORD(first)], ~bits);
        }
        first = next;
    }
}

uint64_t guest_memfd_next_page(const GuestMemfd *gmem, uint64_t first,
                               uint64_t end, bool shared)
{
    const unsigned long *map = gmem->state.shared;
    uint64_t page = first;

    while (page < end) {
        unsigned long word = qatomic_read(&map[BIT_WORD(page)]);

        word = (shared ? word : ~word) & BITMAP_FIRST_WORD_MASK(page);
        page = QEMU_ALIGN_DOWN(page, BITS_PER_LONG);
        if (word) {
            return MIN(end, page + ctzl(word));
        }
        page += BITS_PER_LONG;
    }
    return end;
}

bool guest_memfd_any_private(const GuestMemfd *gmem, uint64_t offset,
                             uint64_t size)
{
    const uint64_t page_size = qemu_real_host_page_size();
    const uint64_t pages = gmem->state.pages;
    uint64_t first = offset / page_size;
    uint64_t end;

    if (!gmem->state.shared || !size || first >= pages) {
        return false;
    }
    end = size - 1 > UINT64_MAX - offset
          ? pages : MIN(pages, (offset + (size - 1)) / page_size + 1);
    return guest_memfd_next_page(gmem, first, end, false) < end;
}

uint64_t guest_memfd_private_pages(const GuestMemfd *gmem, uint64_t *runs)
{
    const GuestMemfdState *s = &gmem->state;
    const uint64_t words = s->shared ? BITS_TO_LONGS(s->pages) : 0;
    unsigned long before = 0;
    uint64_t pages = 0, i;

    *runs = 0;
    for (i = 0; i < words; i++) {
        unsigned long private = ~qatomic_read(&s->shared[i]);

        if (i == words - 1) {
            private &= BITMAP_LAST_WORD_MASK(s->pages);
        }
        pages += ctpopl(private);
        /* A run starts where the page before is shared. */
        *runs += ctpopl(private & ~(private << 1 | before));
        before = private >> (BITS_PER_LONG - 1);
    }
    return pages;
}
