/*
 * RAM blocks that are a KVM guest_memfd: requests by guest physical address
 *
 * A range may span memslots, blocks and holes.  It is resolved and checked as
 * a whole before anything changes, in one view of the guest's memory that also
 * keeps its blocks alive.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "system/address-spaces.h"
#include "gmem/system/guest-memfd-gpa.h"
#include "gmem/system/guest-memfd-internal.h"
#include "system/guest-memfd-access.h"
#include "system/memory-internal.h"
#include "gmem/trace.h"

typedef struct GpaRange GpaRange;

/*
 * GpaRange: guest physical addresses, gone through block by block
 * @view: of the guest's memory
 * @start: of the range; bytes
 * @next: what was not looked at yet begins here; bytes
 * @end: of the range; bytes
 * @gap: a part that was looked at has no state
 * @part: called for each part of a block that has a state; not 0 ends it
 * @private: what @part is about
 * @retry: what @part may take
 * @ret: what @part has returned
 */
struct GpaRange {
    FlatView *view;
    hwaddr start;
    hwaddr next;
    hwaddr end;
    bool gap;
    int (*part)(GpaRange *r, RAMBlock *rb, uint64_t offset, uint64_t size);
    bool private;
    const GuestMemfdRetry *retry;
    int ret;
};

static bool has_state(const RAMBlock *rb)
{
    return rb && (guest_memfd_in_place()
                  ? rb->gmem && guest_memfd_can_be_private(rb->gmem)
                  : rb->guest_memfd >= 0);
}

/*
 * A flatview_cb.  KVM has memory at whole pages only; the incomplete pages at
 * the edges of a region count as none.
 */
static bool visit_region(Int128 start, Int128 len, const MemoryRegion *mr,
                         hwaddr offset, void *opaque)
{
    GpaRange *r = opaque;
    const uint64_t page_size = qemu_real_host_page_size();
    hwaddr region = int128_get64(start);
    hwaddr first, end;

    if (region >= r->end) {
        return true;
    }
    end = int128_get64(int128_min(int128_add(start, len),
                                  int128_make64(r->end)));
    first = ROUND_UP(MAX(region, r->next), page_size);
    end = ROUND_DOWN(end, page_size);
    offset += first - region;
    if (first < end && offset % page_size == 0 && has_state(mr->ram_block)) {
        r->gap |= first > r->next;
        r->next = first;
        r->ret = r->part(r, mr->ram_block, offset, end - first);
        if (!r->ret) {
            r->next = end;
        }
    }
    return r->ret;
}

static int for_each_part(GpaRange *r,
                         int (*part)(GpaRange *r, RAMBlock *rb,
                                     uint64_t offset, uint64_t size))
{
    r->next = r->start;
    r->part = part;
    r->ret = 0;
    flatview_for_each_range(r->view, visit_region, r);
    return r->ret;
}

static int part_exists(GpaRange *r, RAMBlock *rb, uint64_t offset,
                       uint64_t size)
{
    return 0;
}

/*
 * Check a whole range.  Returns 0, with a view that is to be unreferenced; or
 * -EINVAL.
 */
static int range_resolve(GpaRange *r, hwaddr gpa, hwaddr size)
{
    const uint64_t page_size = qemu_real_host_page_size();

    if (!size || gpa % page_size || size % page_size || gpa + size < gpa) {
        return -EINVAL;
    }
    r->start = gpa;
    r->end = gpa + size;
    r->view = address_space_get_flatview(&address_space_memory);
    for_each_part(r, part_exists);
    if (r->private && (r->gap || r->next < r->end)) {
        flatview_unref(r->view);
        return -EINVAL;
    }
    return 0;
}

static int part_convert(GpaRange *r, RAMBlock *rb, uint64_t offset,
                        uint64_t size)
{
    uint64_t done;
    int ret;

    if (r->next > r->start && guest_memfd_retry_ends(r->retry)) {
        return -EINTR;
    }
    /* Memory that is unplugged meanwhile is converted like any other. */
    ret = guest_memfd_in_place()
          ? guest_memfd_convert(rb->gmem, offset, size, r->private, r->retry,
                                &done)
          : guest_memfd_separate_convert(rb, r->next, offset, size, r->private,
                                         r->retry, &done);
    r->next += done;
    return ret;
}

int guest_memfd_convert_gpa(hwaddr gpa, hwaddr size, bool to_private,
                            const GuestMemfdRetry *retry, hwaddr *done)
{
    GpaRange r = { .private = to_private, .retry = retry };
    int ret = range_resolve(&r, gpa, size);

    *done = 0;
    if (!ret) {
        ret = for_each_part(&r, part_convert);
        *done = ret ? r.next - gpa : size;
        flatview_unref(r.view);
    }
    trace_guest_memfd_convert_gpa(gpa, size, to_private, *done, ret);
    return ret;
}

static int part_differs(GpaRange *r, RAMBlock *rb, uint64_t offset,
                        uint64_t size)
{
    const uint64_t page_size = qemu_real_host_page_size();
    uint64_t end = (offset + size) / page_size;

    if (!guest_memfd_in_place()) {
        return guest_memfd_separate_differs(rb, offset, size, r->private);
    }
    return guest_memfd_next_page(rb->gmem, offset / page_size, end,
                                 r->private) < end;
}

int guest_memfd_gpa_differs(hwaddr gpa, hwaddr size, bool private)
{
    GpaRange r = { .private = private };
    int ret = range_resolve(&r, gpa, size);

    if (!ret) {
        ret = for_each_part(&r, part_differs);
        flatview_unref(r.view);
    }
    return ret;
}

bool guest_memfd_gpa_is_hidden(hwaddr gpa)
{
    hwaddr offset, len = 1;
    MemoryRegion *mr;

    RCU_READ_LOCK_GUARD();
    mr = address_space_translate(&address_space_memory, gpa, &offset, &len,
                                 false, MEMTXATTRS_UNSPECIFIED);
    return guest_memfd_is_hidden_region(mr);
}
