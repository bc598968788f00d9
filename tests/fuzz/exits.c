/*
 * A guest that does what bytes say, on accel/kvm/guest-memfd-exit.c and
 * system/guest-memfd-convert.c, -gpa.c, -separate.c and -state.c
 *
 * The kernel, the BQL, the address space, discard listeners and the clock are
 * stand-ins.  A vCPU leaves KVM for hypercalls, memory faults, MMIO and EFAULT;
 * meanwhile pages are pinned, listeners come and go, the host converts, and
 * the vCPU's thread is interrupted.  Kernel and listeners answer as they like,
 * within their contract.
 *
 * What must hold, or the program aborts:
 *
 * - A hypercall is answered with 0, EINVAL or EAGAIN.
 * - A conversion that succeeds covers the whole range.  One that fails was
 *   carried out from the start of the range up to some page, and no further,
 *   unless the kernel also refuses to put a chunk back.
 * - It fails only if it is invalid, or if kernel or a listener has failed.
 * - The state that QEMU keeps, the kernel's, a model's and that of listeners
 *   are the same after each step.  No page becomes private that a listener has
 *   mapped, and no listener is notified to map a page that is not shared.
 * - A fault that is no request changes nothing, and does not come for ever.
 * - No page that is shared stays covered.
 *
 * Of guests whose private memory is separate, QEMU's own conversion is a
 * stand-in, too, and there are no listeners.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "exec/cpu-common.h"
#include "monitor/monitor.h"
#include <linux/kvm.h>
#include <linux/kvm_para.h>
#include "hw/core/boards.h"
#include "hw/core/cpu.h"
#include "qemu/bitmap.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "qemu/thread.h"
#include "system/address-spaces.h"
#include "system/confidential-guest-support.h"
#include "system/cpus.h"
#include "gmem/accel/kvm/guest-memfd.h"
#include "gmem/system/guest-memfd-gpa.h"
#include "gmem/system/guest-memfd-internal.h"
#include "gmem/system/guest-memfd-rebuild.h"
#include "gmem/tests/include/test-discard-manager.h"
#include "system/guest-memfd-access.h"
#include "system/guest-memfd-events.h"
#include "system/memory-internal.h"
#include "exits.h"
#include "system/memory.h"
#include "system/ramblock.h"
#include "system/runstate.h"

#define BLOCKS 3
#define PAGES 96
#define LISTENERS 3

/* Listener b has registered a part of the block only, c comes and goes. */
#define B_FIRST 40
#define B_PAGES 30

#define FOREVER UINT_MAX
#define PRIVATE_FAULT (1ull << 3)

/* A stale fault may come so many times. */
#define FAULTS_AT_LEAST 10
#define FAULTS_AT_MOST 5000

/*
 * Listener: a device that maps shared pages
 * @mapped, @refused: a byte per page
 */
typedef struct Listener {
    RamDiscardListener rdl;
    MemoryRegionSection section;
    unsigned block;
    bool registered;
    uint8_t mapped[PAGES];
    uint8_t refused[PAGES];
} Listener;

/*
 * Block: a file, and the state of its pages, a byte each
 * @private: to the kernel
 * @model: as it has to be
 * @converting: a thread is in the kernel
 * @covered: a device has touched the page while it was hidden
 * @pins: so many conversions to private will find the page busy
 */
typedef struct Block {
    GuestMemfd gmem;
    RAMBlock rb;
    MemoryRegion mr;
    RamBlockAttributes attributes;
    TestManager manager;
    Listener listeners[LISTENERS];
    uint8_t private[PAGES];
    uint8_t model[PAGES];
    bool converting;
    uint8_t covered[PAGES];
    unsigned pins[PAGES];
} Block;

static Block blocks[BLOCKS];
static uint64_t page_size;
static GuestType guest_type;
static ConfidentialGuestSupport cgs;
static MachineState machine;
static int64_t now_us = 1000;

static QemuMutex kernel_lock;
static QemuMutex access_lock;
static bool no_memory;      /* in the kernel, until further notice */
static QemuMutex bql;
static __thread bool have_bql;

/*
 * Vcpu: a vCPU, and its thread
 * @front, @back: what is left of its bytes
 * @alone: see guest_run()
 * @cpu, @run: the vCPU
 * @pending: its last hypercall was interrupted
 * @gpa, @size, @private: of that; or of the last memory fault
 * @flags: of memory faults, but for that bit
 * @stale: number of stale faults in a row
 * @asked: when it left for that hypercall
 * @progress: conversions by the kernel since then
 * @failures: failures of kernel and listeners since the step began
 * @no_memory, @refused: so often by ENOMEM; for good
 * @calls: of kernel and listeners, since then
 * @stuck: since then QEMU has warned that a chunk could not be put back
 * @wanted_in: so many more calls and pauses until the thread is interrupted
 */
typedef struct Vcpu {
    const uint8_t *front;
    const uint8_t *back;
    bool alone;
    CPUState cpu;
    struct kvm_run run;
    bool pending;
    uint64_t gpa;
    uint64_t size;
    bool private;
    uint64_t flags;
    unsigned stale;
    int64_t asked;
    unsigned progress;
    unsigned failures;
    unsigned no_memory;
    unsigned refused;
    unsigned calls;
    bool stuck;
    unsigned wanted_in;
} Vcpu;

static __thread Vcpu *vcpu;
__thread CPUState *current_cpu;
MachineState *current_machine = &machine;
bool kvm_pre_fault_memory_supported = true;

/* Bytes; zeros when there are no more */

static uint8_t byte(void)
{
    return vcpu->front < vcpu->back ? *vcpu->front++ : 0;
}

static uint64_t bytes(unsigned n)
{
    uint64_t value = 0;

    while (n--) {
        value = value << 8 | byte();
    }
    return value;
}

static uint8_t answer_byte(void)
{
    return vcpu->front < vcpu->back ? *--vcpu->back : 0;
}

/* The clock.  The thread may be interrupted in a wait or in the kernel. */

static void time_goes_on(void)
{
    if (vcpu->wanted_in && !--vcpu->wanted_in) {
        qatomic_set(&vcpu->cpu.exit_request, true);
    }
}

gint64 g_get_monotonic_time(void)
{
    return qatomic_fetch_add(&now_us, 200);
}

/* The host is busy: this saves rounds of waiting for pages. */
void g_usleep(gulong us)
{
    qatomic_add(&now_us, 10 * us);
    time_goes_on();
    if (!vcpu->alone) {
        sched_yield();
    }
}

/* The BQL */

bool bql_locked(void)
{
    return have_bql;
}

void bql_lock_impl(const char *file, int line)
{
    g_assert_false(have_bql);
    qemu_mutex_lock(&bql);
    have_bql = true;
}

void bql_unlock(void)
{
    g_assert_true(have_bql);
    have_bql = false;
    qemu_mutex_unlock(&bql);
}

void bql_block_unlock(bool increase)
{
}

bool mutex_is_bql(QemuMutex *mutex)
{
    return mutex == &bql;
}

void bql_update_status(bool locked)
{
}

void rust_bql_mock_lock(void)
{
}

/* Messages */

int monitor_vprintf(Monitor *mon, const char *fmt, va_list ap)
{
    g_autofree char *text = g_strdup_vprintf(fmt, ap);

    if (strstr(text, "stay shared after a failed conversion")) {
        vcpu->stuck = true;
    }
    return strlen(text);
}

Monitor *monitor_cur(void)
{
    return NULL;
}

Object *object_dynamic_cast(Object *obj, const char *type)
{
    return NULL;
}

Object *object_dynamic_cast_assert(Object *obj, const char *type,
                                   const char *file, int line,
                                   const char *func)
{
    return obj;
}

void guest_memfd_event_pinned(const char *id, uint64_t offset)
{
}

/* Calls that this guest's memory cannot need */

void qemu_system_vmstop_request_prepare(void)
{
    g_assert_not_reached();
}

void qemu_system_vmstop_request(RunState state)
{
    g_assert_not_reached();
}

/* The machine */

bool guest_memfd_is_required(const MachineState *m)
{
    return guest_type != GUEST_ORDINARY;
}

bool cpus_are_resettable(void)
{
    return guest_type == GUEST_SW_PROTECTED;
}

bool guest_memfd_in_place(void)
{
    return guest_type != GUEST_ORDINARY && guest_type != GUEST_SEPARATE;
}

/* The kernel */

static int kernel_answer(Block *b, uint64_t first, uint64_t pages,
                         bool private, uint64_t *error_offset)
{
    uint8_t answer = answer_byte();
    uint64_t page;
    unsigned i;

    for (page = first; page < first + pages; page++) {
        for (i = 0; private && i < LISTENERS; i++) {
            g_assert_false(b->listeners[i].mapped[page]);
        }
        if (private && b->pins[page]) {
            b->pins[page] -= b->pins[page] != FOREVER;
            *error_offset = page * page_size;
            return -EAGAIN;
        }
    }
    if (no_memory) {
        *error_offset = first * page_size;
        return -ENOMEM;
    }
    switch (answer) {
    case 0x80 ... 0x87:
        if (private) {
            *error_offset = (first + answer_byte() % pages) * page_size;
            return -EAGAIN;
        }
        return 0;
    case 0x88 ... 0x8b:
        return -EINTR;
    case 0x8c ... 0x8f:
        *error_offset = first * page_size;
        return -ENOMEM;
    case 0x90:
        return -EINVAL;
    case 0x91:
        return -EIO;
    case 0x92 ... 0x9f:
        /* A kernel that answers with a wrong offset */
        *error_offset = (uint64_t)answer_byte() << 56;
        return -EAGAIN;
    default:
        return 0;
    }
}

/* A listener that has refused a page is not notified when that is undone. */
static void kernel_changes(Block *b, uint64_t page, bool private)
{
    unsigned i;

    for (i = 0; b->private[page] != private && i < LISTENERS; i++) {
        b->listeners[i].refused[page] = 0;
    }
    b->private[page] = private;
}

int kvm_guest_memfd_set_private(int fd, uint64_t offset, uint64_t size,
                                bool private, uint64_t *error_offset)
{
    uint64_t first = offset / page_size;
    uint64_t pages = size / page_size;
    Block *b = &blocks[fd];
    unsigned i;
    int ret;

    g_assert_cmpint(fd, <, BLOCKS);
    g_assert_false((offset | size) % page_size);
    g_assert_cmpint(first, <, PAGES);
    g_assert_cmpint(pages, >, 0);
    g_assert_cmpint(pages, <=, PAGES - first);

    vcpu->calls++;
    time_goes_on();
    WITH_QEMU_LOCK_GUARD(&kernel_lock) {
        g_assert_false(b->converting);
        b->converting = true;
    }
    if (!vcpu->alone) {
        sched_yield();
    }
    WITH_QEMU_LOCK_GUARD(&kernel_lock) {
        ret = kernel_answer(b, first, pages, private, error_offset);
        if (!ret) {
            for (i = 0; i < pages; i++) {
                kernel_changes(b, first + i, private);
            }
        }
        b->converting = false;
    }
    vcpu->progress += !ret;
    vcpu->failures += !!ret;
    vcpu->no_memory += ret == -ENOMEM;
    vcpu->refused += ret && ret != -EAGAIN && ret != -EINTR && ret != -ENOMEM;
    return ret;
}

/* Pre-faults some of it; and never what the guest has not just converted. */
int kvm_vcpu_ioctl(CPUState *cpu, unsigned long type, ...)
{
    struct kvm_pre_fault_memory *range;
    uint64_t done;
    va_list ap;

    va_start(ap, type);
    range = va_arg(ap, struct kvm_pre_fault_memory *);
    va_end(ap);
    g_assert_true(cpu == &vcpu->cpu);
    g_assert_cmphex(type, ==, KVM_PRE_FAULT_MEMORY);
    g_assert_cmphex(range->gpa, >=, vcpu->gpa);
    g_assert_cmphex(range->gpa + range->size, ==, vcpu->gpa + vcpu->size);
    time_goes_on();
    if (answer_byte() % 16 == 15) {
        return -EAGAIN;
    }
    done = MIN(range->size, MAX(page_size, range->size / 2));
    range->gpa += done;
    range->size -= done;
    return 0;
}

/* The code must not free memory of a page. */

int ram_block_discard_range(RAMBlock *rb, uint64_t offset, size_t length)
{
    g_assert_not_reached();
}

/* Pages that a device has touched while they were hidden */

static bool is_hidden(Block *b, uint64_t page)
{
    return b->gmem.state.shared &&
           guest_memfd_next_page(&b->gmem, page, page + 1, true) > page;
}

static void touch(Block *b, uint64_t page)
{
    QEMU_LOCK_GUARD(&access_lock);
    b->covered[page] |= is_hidden(b, page);
}

int guest_memfd_show(GuestMemfd *gmem, uint64_t first, uint64_t end)
{
    Block *b = container_of(gmem, Block, gmem);

    QEMU_LOCK_GUARD(&access_lock);
    memset(b->covered + first, 0, end - first);
    guest_memfd_state_set(gmem, first, end, true);
    return 0;
}

void guest_memfd_hide(GuestMemfd *gmem, uint64_t first, uint64_t end)
{
    guest_memfd_state_set(gmem, first, end, false);
}

/* Listeners */

static Listener *section_of(RamDiscardListener *rdl,
                            const MemoryRegionSection *s, uint64_t *first,
                            uint64_t *pages)
{
    Listener *l = container_of(rdl, Listener, rdl);
    uint64_t size = int128_get64(s->size);

    g_assert_true(have_bql);
    g_assert_true(s->mr == l->section.mr);
    g_assert_false((s->offset_within_region | size) % page_size);
    *first = s->offset_within_region / page_size;
    *pages = size / page_size;
    g_assert_cmpint(*pages, >, 0);
    g_assert_cmpint(s->offset_within_region, >=,
                    l->section.offset_within_region);
    g_assert_cmpint(s->offset_within_region + size, <=,
                    l->section.offset_within_region +
                    int128_get64(l->section.size));
    vcpu->calls++;
    return l;
}

static int notify_populate(RamDiscardListener *rdl,
                           const MemoryRegionSection *s)
{
    uint64_t first, pages, page;
    Listener *l = section_of(rdl, s, &first, &pages);
    int ret = answer_byte() >= 0xf0 ? -ENOSPC : 0;

    vcpu->failures += !!ret;
    vcpu->refused += !!ret;
    QEMU_LOCK_GUARD(&kernel_lock);
    for (page = first; page < first + pages; page++) {
        g_assert_false(l->mapped[page]);
        g_assert_false(blocks[l->block].private[page]);
        l->mapped[page] = !ret;
        l->refused[page] = !!ret;
    }
    return ret;
}

static void notify_discard(RamDiscardListener *rdl,
                           const MemoryRegionSection *s)
{
    uint64_t first, pages, page;
    Listener *l = section_of(rdl, s, &first, &pages);

    QEMU_LOCK_GUARD(&kernel_lock);
    for (page = first; page < first + pages; page++) {
        g_assert_true(l->mapped[page] || l->refused[page]);
        g_assert_false(blocks[l->block].private[page]);
        l->mapped[page] = 0;
        l->refused[page] = 0;
    }
}

TestManager *test_manager_of(const GuestMemfd *gmem)
{
    return &container_of(gmem, Block, gmem)->manager;
}

static void listener_lost(RamDiscardListener *rdl, const MemoryRegionSection *s)
{
    uint64_t first, pages;
    Listener *l = section_of(rdl, s, &first, &pages);

    QEMU_LOCK_GUARD(&kernel_lock);
    memset(l->refused + first, 1, pages);
}

/* May devices map the page? */
static bool is_shown(Block *b, uint64_t page)
{
    GuestMemfdState *s = &b->gmem.state;

    if (guest_type == GUEST_SEPARATE) {
        return test_bit(page, b->attributes.bitmap);
    }
    QEMU_LOCK_GUARD(&s->lock);
    return !is_hidden(b, page);
}

/* At its registration, a listener maps the shown pages. */
static void set_registered(Listener *l, bool registered)
{
    Block *b = &blocks[l->block];
    uint64_t first = l->section.offset_within_region / page_size;
    uint64_t page, end = first + int128_get64(l->section.size) / page_size;

    if (l->registered == registered) {
        return;
    }
    l->registered = registered;
    if (registered) {
        test_manager_add(&b->manager, &l->rdl);
    }
    for (page = first; page < end; page++) {
        bool shown = is_shown(b, page);

        QEMU_LOCK_GUARD(&kernel_lock);
        g_assert_cmpint(l->mapped[page], ==, !registered && shown &&
                                             !l->refused[page]);
        g_assert_false(shown && b->private[page]);
        l->mapped[page] = registered && shown;
        l->refused[page] = 0;
    }
    if (!registered) {
        test_manager_remove(&b->manager, &l->rdl);
    }
}

bool guest_memfd_is_launching(void)
{
    return false;
}

unsigned guest_memfd_rebuilds(void)
{
    return 0;
}

/* Guest physical addresses */

typedef struct Section {
    uint64_t gpa;
    uint64_t size;
    const MemoryRegion *mr;
    uint64_t offset;
} Section;

#define P(n) ((n) * page_size)
#define SECTIONS 10
#define LOW_PAGES 340

static RAMBlock plain_block = { .host = (uint8_t *)1, .guest_memfd = -1 };
static MemoryRegion mmio, plain_ram = { .ram_block = &plain_block };
static FlatView view;
AddressSpace address_space_memory;

static void map(Section *s)
{
    const uint64_t half = page_size / 2;
    const Section sections[SECTIONS] = {
        { P(0), P(96), &blocks[0].mr, 0 },
        /* a hole of 4 pages */
        { P(100), P(8), &mmio, 0 },
        { P(108), P(8), &plain_ram, 0 },
        { P(116), P(40), &blocks[2].mr, P(50) },
        /* a hole, and what is at 50 is here again */
        { P(160), P(30), &blocks[0].mr, P(50) },
        { P(190), P(96), &blocks[1].mr, P(0) },
        { P(286), P(40), &blocks[2].mr, P(10) },
        /* only page 331 is whole */
        { P(330) + half, P(2), &blocks[1].mr, P(60) + half },
        /* and here none is a page of the file */
        { P(334), P(4), &blocks[1].mr, P(20) + half },
        { 1ull << 51, P(16), &blocks[1].mr, P(80) },
    };

    memcpy(s, sections, sizeof(sections));
}

FlatView *address_space_get_flatview(const AddressSpace *as)
{
    g_assert_true(as == &address_space_memory);
    return &view;
}

void flatview_unref(FlatView *fv)
{
}

void flatview_for_each_range(FlatView *fv, flatview_cb cb, void *opaque)
{
    Section sections[SECTIONS];
    unsigned i;

    map(sections);
    for (i = 0; i < SECTIONS; i++) {
        Section *s = &sections[i];

        if (cb(int128_make64(s->gpa), int128_make64(s->size), s->mr,
               s->offset, opaque)) {
            break;
        }
    }
}

static MemoryRegion hidden_region;

bool guest_memfd_is_hidden_region(const MemoryRegion *mr)
{
    return mr == &hidden_region;
}

/* What is at this address, as the guest's devices see it */
MemoryRegion *flatview_translate(FlatView *fv, hwaddr addr, hwaddr *xlat,
                                 hwaddr *len, bool is_write, MemTxAttrs attrs)
{
    Section sections[SECTIONS];
    unsigned i;

    map(sections);
    for (i = 0; i < SECTIONS; i++) {
        const Section *s = &sections[i];

        if (addr - s->gpa < s->size && s->mr != &mmio && s->mr != &plain_ram &&
            is_hidden(container_of(s->mr, Block, mr),
                      (addr - s->gpa + s->offset) / page_size)) {
            return &hidden_region;
        }
    }
    return &mmio;
}

const char *memory_region_name(const MemoryRegion *mr)
{
    return "ram";
}

GuestMemfd *guest_memfd_from_host(const void *host)
{
    g_assert_not_reached();
}

/* The right result of a request, found out page by page */

typedef uint8_t Pages[BLOCKS][PAGES];

/*
 * Sets @pages to those that are in the range.  Returns 0; or -EINVAL if it is
 * none, or cannot become private.
 */
static int foretell(uint64_t gpa, uint64_t size, bool private, Pages pages)
{
    Section sections[SECTIONS];
    uint64_t found = 0;
    unsigned i;

    memset(pages, 0, sizeof(Pages));
    if (!size || gpa % page_size || size % page_size || gpa + size < gpa) {
        return -EINVAL;
    }
    map(sections);
    for (i = 0; i < SECTIONS; i++) {
        const Section *s = &sections[i];
        uint64_t a = QEMU_ALIGN_UP(s->gpa, page_size);

        if (s->mr == &mmio || s->mr == &plain_ram ||
            guest_type == GUEST_ORDINARY ||
            (s->gpa - s->offset) % page_size) {
            continue;
        }
        for (; a + page_size <= s->gpa + s->size; a += page_size) {
            if (a >= gpa && a - gpa < size) {
                pages[container_of(s->mr, Block, mr) - blocks]
                     [(a - s->gpa + s->offset) / page_size] = 1;
                found++;
            }
        }
    }
    return private && found < size / page_size ? -EINVAL : 0;
}

/*
 * QEMU's own conversion, of separate memory, may fail at its beginning or when
 * it has got half-way; but not for good.
 */
int kvm_convert_memory(hwaddr start, hwaddr size, bool to_private)
{
    uint8_t answer = vcpu->failures ? 0 : answer_byte();
    Pages pages;
    unsigned i, page;

    g_assert_true(have_bql);
    g_assert_true(guest_type == GUEST_SEPARATE);
    g_assert_cmpint(foretell(start, size, true, pages), ==, 0);
    vcpu->calls++;
    if (answer >= 0xc0 && answer < 0xe0) {
        vcpu->failures++;
        vcpu->no_memory++;
        return -ENOMEM;
    }
    for (i = 0; i < BLOCKS; i++) {
        for (page = 0; page < PAGES; page++) {
            if (!pages[i][page]) {
                continue;
            }
            blocks[i].private[page] = to_private;
            if (to_private) {
                clear_bit(page, blocks[i].attributes.bitmap);
            } else {
                set_bit(page, blocks[i].attributes.bitmap);
            }
        }
    }
    if (answer >= 0xe0) {
        vcpu->failures++;
        vcpu->refused++;
        return -EIO;
    }
    return 0;
}

static bool differs(Pages pages, bool private)
{
    unsigned i, page;

    for (i = 0; i < BLOCKS; i++) {
        for (page = 0; page < PAGES; page++) {
            if (pages[i][page] && blocks[i].model[page] != private) {
                return true;
            }
        }
    }
    return false;
}

static void apply(Pages pages, bool private)
{
    unsigned i, page;

    for (i = 0; i < BLOCKS; i++) {
        for (page = 0; page < PAGES; page++) {
            if (pages[i][page]) {
                blocks[i].model[page] = private;
            }
        }
    }
}

/* The states that are kept, the kernel's, the model's and the listeners' */
static void check(void)
{
    unsigned i, k;

    g_assert_false(have_bql);
    for (i = 0; i < BLOCKS; i++) {
        Block *b = &blocks[i];
        GuestMemfdState *s = &b->gmem.state;
        uint64_t page, private = 0;

        for (page = 0; page < PAGES; page++) {
            bool is_private = guest_type == GUEST_SEPARATE
                              ? b->private[page]
                              : is_hidden(b, page);

            g_assert_cmpint(is_private, ==, b->private[page]);
            g_assert_cmpint(is_private, ==, b->model[page]);
            g_assert_cmpint(is_private, !=, is_shown(b, page));
            g_assert_false(b->covered[page] && !is_private);
            private += is_private;
            for (k = 0; k < LISTENERS; k++) {
                Listener *l = &b->listeners[k];
                bool hears = l->registered &&
                             (k != 1 || (page >= B_FIRST &&
                                         page < B_FIRST + B_PAGES));

                g_assert_cmpint(l->mapped[page], ==,
                                hears && !is_private && !l->refused[page]);
                g_assert_false(l->refused[page] && is_private);
            }
        }
        if (guest_type != GUEST_SEPARATE) {
            g_assert_cmpint(s->to_private - s->to_shared, ==, private);
        }
    }
}

/* The kernel refused to put a chunk back: its state is what there is. */
static void sync_model(void)
{
    unsigned i;

    for (i = 0; i < BLOCKS; i++) {
        GuestMemfdState *s = &blocks[i].gmem.state;
        uint64_t runs;

        memcpy(blocks[i].model, blocks[i].private, PAGES);
        s->to_private = guest_memfd_private_pages(&blocks[i].gmem, &runs);
        s->to_shared = 0;
    }
}

/*
 * A conversion has failed: from the start of the range up to some page all is
 * as requested, and behind that all as it was.  A page that is there twice
 * counts where it is first.
 */
static void follow(uint64_t gpa, uint64_t size, bool private)
{
    Section sections[SECTIONS];
    Pages seen = {};
    bool ended = false;
    unsigned i;

    map(sections);
    for (i = 0; i < SECTIONS; i++) {
        const Section *s = &sections[i];
        uint64_t a = QEMU_ALIGN_UP(s->gpa, page_size);

        if (s->mr == &mmio || s->mr == &plain_ram ||
            (s->gpa - s->offset) % page_size) {
            continue;
        }
        for (; a + page_size <= s->gpa + s->size; a += page_size) {
            Block *b = container_of(s->mr, Block, mr);
            unsigned page = (a - s->gpa + s->offset) / page_size;

            if (a < gpa || a - gpa >= size || seen[b - blocks][page]++) {
                continue;
            }
            ended |= b->private[page] != private;
            if (!ended) {
                b->model[page] = private;
            }
        }
    }
}

static void begin_step(void)
{
    unsigned i;

    vcpu->failures = 0;
    vcpu->no_memory = 0;
    vcpu->refused = 0;
    vcpu->calls = 0;
    vcpu->stuck = false;
    for (i = 0; vcpu->alone && i < BLOCKS; i++) {
        blocks[i].gmem.state.warned = false;
    }
}

static void end_step(void)
{
    if (vcpu->alone) {
        if (vcpu->stuck) {
            /* A listener has refused it, and the kernel to put it back. */
            g_assert_cmpint(vcpu->failures, >=, 2);
            sync_model();
        }
        check();
    }
}

/* Check the result of a conversion. */
static void check_conversion(uint64_t gpa, uint64_t size, bool private,
                             bool makes_sense, bool done)
{
    Pages pages;

    if (!vcpu->alone) {
        return;
    }
    if (foretell(gpa, size, private, pages) || !makes_sense) {
        g_assert_false(done);
        g_assert_cmpint(vcpu->calls, ==, 0);
    } else if (done) {
        apply(pages, private);
    } else {
        g_assert_cmpint(vcpu->failures, >, 0);
        follow(gpa, size, private);
    }
}

/* What the guest asks for */

/* Mostly in memory, but anything can come. */
static uint64_t an_address(void)
{
    uint8_t kind = byte();

    switch (kind) {
    case 0 ... 0xdf:
        return P((kind << 8 | byte()) % LOW_PAGES);
    case 0xe0 ... 0xe7:
        return (1ull << 51) + P(byte() % 20);
    case 0xe8 ... 0xef:
        return P(byte() % LOW_PAGES) + bytes(2);
    default:
        return bytes(8);
    }
}

static uint64_t a_count(void)
{
    uint8_t kind = byte();

    switch (kind) {
    case 0 ... 0xbf:
        return kind % 8;
    case 0xc0 ... 0xef:
        return byte();
    default:
        return bytes(8);
    }
}

/* The vCPU has left the hypercall.  @ret is what it does next. */
static void end_hypercall(int ret)
{
    const struct kvm_run *run = &vcpu->run;
    uint64_t attributes = run->hypercall.args[2];
    uint64_t pages = run->hypercall.args[1];
    int64_t limit = guest_type == GUEST_SNP ? 60000000 : 1000000;
    int64_t spent = qatomic_read(&now_us) - vcpu->asked;
    bool wanted = qatomic_read(&vcpu->cpu.exit_request);

    vcpu->pending = ret == EXCP_INTERRUPT;
    if (vcpu->pending) {
        g_assert_true(wanted);
        g_assert_false(cpus_are_resettable());
    } else {
        g_assert_cmpint(ret, ==, 0);
        g_assert_true(run->hypercall.ret == 0 ||
                      run->hypercall.ret == EINVAL ||
                      run->hypercall.ret == EAGAIN);
        if (vcpu->calls && run->hypercall.ret == EINVAL) {
            g_assert_cmpint(vcpu->refused, >, 0);
        }
        if (run->hypercall.ret == EAGAIN && !vcpu->no_memory &&
            !(wanted && cpus_are_resettable())) {
            g_assert_cmpint(spent, >=, limit);
        }
        if (vcpu->alone && !vcpu->progress) {
            g_assert_cmpint(spent, <, limit + 200000);
        }
    }
    /* The thread is interrupted, so the request may be half done. */
    vcpu->failures += wanted;
    check_conversion(vcpu->gpa, vcpu->size, vcpu->private,
                     !(attributes & ~0x1full) && pages <= UINT64_MAX >> 12,
                     !vcpu->pending && !run->hypercall.ret);
}

static void hypercall(uint64_t nr, uint64_t attributes)
{
    struct kvm_run *run = &vcpu->run;
    int ret = -1;

    run->exit_reason = KVM_EXIT_HYPERCALL;
    run->hypercall.nr = nr;
    run->hypercall.args[0] = an_address();
    run->hypercall.args[1] = a_count();
    run->hypercall.args[2] = attributes;
    run->hypercall.ret = -1;
    vcpu->gpa = run->hypercall.args[0];
    vcpu->size = run->hypercall.args[1] << 12;
    vcpu->private = attributes & KVM_MAP_GPA_RANGE_ENCRYPTED;
    vcpu->asked = qatomic_read(&now_us);
    vcpu->progress = 0;
    if (!kvm_guest_memfd_hypercall(&vcpu->cpu, run, &ret)) {
        g_assert_true(nr != KVM_HC_MAP_GPA_RANGE ||
                      guest_type == GUEST_ORDINARY);
        g_assert_cmpint(vcpu->calls, ==, 0);
        return;
    }
    g_assert_cmpint(nr, ==, KVM_HC_MAP_GPA_RANGE);
    end_hypercall(ret);
}

/* Before the vCPU enters KVM again; the interruption is over. */
static void resume(void)
{
    bool was_pending;

    do {
        int ret = 0;

        was_pending = vcpu->pending;
        begin_step();
        qatomic_set(&vcpu->cpu.exit_request, false);
        if (kvm_guest_memfd_resume(&vcpu->cpu, &vcpu->run, &ret)) {
            g_assert_true(was_pending);
            g_assert_cmpint(ret, ==, EXCP_INTERRUPT);
        } else {
            ret = 0;
        }
        if (was_pending) {
            end_hypercall(ret);
            end_step();
        }
    } while (was_pending);
}

static int fault_once(void)
{
    Pages pages;
    int expected = foretell(vcpu->gpa, vcpu->size, vcpu->private, pages);
    bool request;
    int ret;

    vcpu->run.exit_reason = KVM_EXIT_MEMORY_FAULT;
    vcpu->run.memory_fault.flags = (vcpu->flags & ~PRIVATE_FAULT) |
                                   (vcpu->private ? PRIVATE_FAULT : 0);
    vcpu->run.memory_fault.gpa = vcpu->gpa;
    vcpu->run.memory_fault.size = vcpu->size;
    ret = kvm_guest_memfd_memory_fault(&vcpu->cpu, &vcpu->run);
    if (!vcpu->alone) {
        return ret;
    }

    if (guest_type == GUEST_ORDINARY) {
        request = vcpu->private;
    } else if (guest_type == GUEST_SW_PROTECTED) {
        request = false;
    } else {
        request = expected || differs(pages, vcpu->private);
    }
    if (!request) {
        g_assert_cmpint(vcpu->calls, ==, 0);
        vcpu->stale++;
        if (ret) {
            g_assert_cmpint(ret, <, 0);
            g_assert_cmpint(vcpu->stale, >, FAULTS_AT_LEAST);
            vcpu->stale = 0;
        }
        return ret;
    }
    vcpu->stale = 0;
    if (ret == EXCP_INTERRUPT) {
        g_assert_true(qatomic_read(&vcpu->cpu.exit_request));
        vcpu->failures++;
    } else {
        g_assert_cmpint(ret, <=, 0);
    }
    /* For lack of memory it comes again. */
    check_conversion(vcpu->gpa, vcpu->size, vcpu->private,
                     guest_type != GUEST_ORDINARY, !ret && !vcpu->no_memory);
    return ret;
}

static void memory_fault(void)
{
    uint64_t count;

    vcpu->flags = byte() & 1 ? bytes(8) : byte();
    vcpu->gpa = an_address();
    count = a_count();
    vcpu->size = byte() & 7 ? P(count) : count;
    vcpu->private = vcpu->flags & PRIVATE_FAULT;
    vcpu->stale = 0;
    fault_once();
}

/* The same fault comes again and again, without a conversion. */
static void same_fault_again(void)
{
    unsigned times = 0;

    /* Not for SEV-SNP, whose limit is longer: that would take long. */
    while (guest_type != GUEST_SNP && vcpu->alone && !fault_once()) {
        g_assert_cmpint(++times, <, FAULTS_AT_MOST);
        if (vcpu->calls) {
            end_step();
            begin_step();
        }
    }
}

static void emulated_access(void)
{
    struct kvm_run *run = &vcpu->run;
    bool is_private;
    hwaddr xlat, len = 1;

    run->exit_reason = KVM_EXIT_MMIO;
    run->mmio.phys_addr = an_address();
    run->mmio.is_write = byte() & 1;
    run->mmio.len = 8;
    is_private = guest_memfd_in_place() &&
                 flatview_translate(NULL, run->mmio.phys_addr, &xlat, &len,
                                    false, MEMTXATTRS_UNSPECIFIED) ==
                 &hidden_region;
    if (kvm_guest_memfd_is_mmio(run) == is_private) {
        g_assert_false(vcpu->alone);
    }
    g_assert_cmpint(vcpu->calls, ==, 0);
}

/* KVM_RUN fails without an exit. */
static void run_fails(void)
{
    static const int errors[] = { EFAULT, EINTR, EHWPOISON, EINVAL };
    int error = errors[byte() % 4];
    unsigned times = 0;

    vcpu->run.exit_reason = byte() % 4 ? KVM_EXIT_UNKNOWN : byte();
    while (kvm_guest_memfd_retry(&vcpu->cpu, &vcpu->run, -error)) {
        g_assert_cmpint(error, ==, EFAULT);
        g_assert_cmpint(vcpu->run.exit_reason, ==, KVM_EXIT_UNKNOWN);
        g_assert_true(guest_memfd_in_place());
        if (!vcpu->alone || ++times == FAULTS_AT_MOST) {
            break;
        }
    }
    g_assert_cmpint(times, <, FAULTS_AT_MOST);
    g_assert_cmpint(vcpu->calls, ==, 0);
}

/* Other threads' actions */

static Block *a_block(void)
{
    return &blocks[byte() % BLOCKS];
}

static void host_converts(void)
{
    static const GuestMemfdRetry a_second = { .timeout = 1000000 };
    uint8_t how = byte();
    bool private = how & 1, with_bql = how & 2;
    Block *b = a_block();
    uint64_t first = byte() % (PAGES + 4), pages = byte() % (PAGES / 2);
    bool beyond = first > PAGES || pages > PAGES - first;
    uint64_t done;
    int ret;

    if (with_bql) {
        bql_lock();
    }
    ret = guest_memfd_convert(&b->gmem, P(first), P(pages), private,
                              how & 4 ? &a_second : NULL, &done);
    if (with_bql) {
        bql_unlock();
    }
    if (!vcpu->alone) {
        return;
    }
    if (beyond || (!guest_memfd_in_place() && private)) {
        g_assert_cmpint(ret, ==, -EINVAL);
        g_assert_cmpint(vcpu->calls, ==, 0);
        g_assert_cmpint(done, ==, 0);
        return;
    }
    g_assert_cmpint(done == P(pages), ==, !ret);
    if (ret) {
        g_assert_cmpint(vcpu->failures, >, 0);
    }
    if (guest_memfd_in_place()) {
        memset(b->model + first, private, done / page_size);
    }
}

static void pin(void)
{
    Block *b = a_block();
    unsigned page = byte() % PAGES, pages = 1 + byte() % 32;
    uint8_t times = byte();

    QEMU_LOCK_GUARD(&kernel_lock);
    no_memory = times == 0x7f;
    for (; pages-- && page < PAGES; page++) {
        b->pins[page] = times & 0x80 ? FOREVER : times % 8;
    }
}

static void unpin_all(void)
{
    unsigned i;

    QEMU_LOCK_GUARD(&kernel_lock);
    no_memory = false;
    for (i = 0; i < BLOCKS; i++) {
        memset(blocks[i].pins, 0, sizeof(blocks[i].pins));
    }
}

static void listener_comes_or_goes(void)
{
    Listener *l = &a_block()->listeners[byte() % LISTENERS];
    bool registered = byte() & 1;

    if (guest_type != GUEST_SEPARATE) {
        bql_lock();
        set_registered(l, registered);
        bql_unlock();
    }
}

static void step(void)
{
    uint8_t what = byte();

    switch (what % 16) {
    case 0 ... 3:
        hypercall(KVM_HC_MAP_GPA_RANGE, what & 0x10);
        break;
    case 4:
        hypercall(KVM_HC_MAP_GPA_RANGE, bytes(what & 0x10 ? 8 : 1));
        break;
    case 5:
        hypercall(bytes(2), byte());
        break;
    case 6 ... 7:
        memory_fault();
        break;
    case 8:
        same_fault_again();
        break;
    case 9:
        emulated_access();
        break;
    case 10:
        run_fails();
        break;
    case 11:
        vcpu->wanted_in = 1 + byte() % 64;
        break;
    case 12:
        pin();
        break;
    case 13:
        unpin_all();
        break;
    case 14:
        listener_comes_or_goes();
        break;
    case 15:
        if (what & 0x80 && guest_memfd_in_place()) {
            touch(a_block(), byte() % PAGES);
        } else {
            host_converts();
        }
        break;
    }
}

void guest_run(const uint8_t *data, size_t size, bool alone)
{
    g_autofree Vcpu *v = g_new0(Vcpu, 1);

    v->front = data;
    v->back = data + size;
    v->alone = alone;
    vcpu = v;
    current_cpu = &v->cpu;
    while (v->front < v->back) {
        begin_step();
        step();
        end_step();
        resume();
    }
    vcpu = NULL;
    current_cpu = NULL;
}

static void set_section(Listener *l, uint64_t first, uint64_t pages)
{
    l->section = (MemoryRegionSection) {
        .mr = &blocks[l->block].mr,
        .offset_within_region = first * page_size,
        .offset_within_address_space = first * page_size,
        .size = int128_make64(pages * page_size),
    };
    l->rdl.section = &l->section;
}

void guest_begin(GuestType type)
{
    unsigned i, k;

    if (!page_size) {
        page_size = qemu_real_host_page_size();
        qemu_mutex_init(&kernel_lock);
        qemu_mutex_init(&access_lock);
        qemu_mutex_init(&bql);
    }
    guest_type = type;
    cgs.require_guest_memfd = true;
    cgs.retries = type != GUEST_SNP;
    cgs.takes_any_state = type == GUEST_SW_PROTECTED;
    machine.cgs = type == GUEST_ORDINARY ? NULL : &cgs;
    no_memory = false;
    memset(blocks, 0, sizeof(blocks));
    for (i = 0; i < BLOCKS; i++) {
        Block *b = &blocks[i];

        b->rb.fd = i;
        b->rb.guest_memfd = type == GUEST_SEPARATE ? i : -1;
        b->rb.mr = &b->mr;
        b->rb.max_length = PAGES * page_size;
        b->rb.attributes = &b->attributes;
        b->rb.gmem = type == GUEST_SEPARATE ? NULL : &b->gmem;
        b->mr.ram_block = &b->rb;
        b->gmem.rb = &b->rb;
        b->attributes.ram_block = &b->rb;
        b->attributes.bitmap_size = PAGES;
        b->attributes.bitmap = bitmap_new(PAGES);
        bitmap_set(b->attributes.bitmap, 0, PAGES);
        b->manager.lost = listener_lost;
        guest_memfd_state_init(&b->gmem, guest_memfd_in_place());
        for (k = 0; k < LISTENERS; k++) {
            Listener *l = &b->listeners[k];

            l->block = i;
            set_section(l, k == 1 ? B_FIRST : 0, k == 1 ? B_PAGES : PAGES);
            ram_discard_listener_init(&l->rdl, notify_populate,
                                      notify_discard);
            /* Block 2 has no listener at first, so that no BQL is needed. */
            set_registered(l, type != GUEST_SEPARATE && k < 2 && i < 2);
        }
    }
}

void guest_end(void)
{
    unsigned i;

    sync_model();
    check();
    for (i = 0; i < BLOCKS; i++) {
        guest_memfd_state_destroy(&blocks[i].gmem);
        g_free(blocks[i].attributes.bitmap);
    }
}
