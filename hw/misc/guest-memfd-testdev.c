/*
 * guest-memfd-testdev: a discard listener that checks its notifications
 *
 * It is notified as VFIO is, but maps nothing: for each section of RAM that is
 * populated and discarded, it records which pages a device would have mapped,
 * and so pinned.  It compares the record with the memory at each notification
 * and when it is asked to, and counts as errors what breaks these rules:
 *
 * - A page to populate can be read, is not private, and is not mapped yet.
 * - A page to discard is mapped, or its populate was refused, unless the
 *   whole section is discarded.  A mapped page can still be read: listeners
 *   are notified before it becomes private.
 * - After a registration exactly those pages are mapped that the memory's
 *   RamDiscardManager calls populated.
 *
 * Each section has its own listener, which takes a second populate of a page
 * as an error.  Pages are read by process_vm_readv(), which fails where an
 * access would raise SIGBUS.
 *
 * Properties, which may be set at any time:
 *
 * @listening: bool, on at first; setting it is as plugging and unplugging a
 *             device
 * @max-mappings: pages that can be mapped; more are refused with ENOSPC.  As
 *                with VFIO's limit on pages of such memory, a registration
 *                that needs more ends QEMU.  0: no limit
 * @refuse-every: each so-many-th populate is refused with ENOSPC; those of a
 *                registration do not count.  0: none
 *
 * @pinned, @touched: str, written only: "ID NUMBER" sends the event of that
 *                    name for the block ID, with NUMBER for all of its numbers
 *
 * and can be read:
 *
 * @errors: how often a rule was broken.  The first few are reported
 * @mapped-pages: pages that are mapped now; one in two sections counts twice
 * @populates, @discards: notifications to populate, and to discard pages that
 *                        were mapped or refused
 * @check: compares the record with the RamDiscardManager, with QEMU's state
 *         of pages, and with what can be read.  A private page must be
 *         unreadable, unless a device has touched it and it is covered.
 *         Returns the first difference, or "".  No conversion may run
 * @digest: of the private pages by QEMU's state of pages: SHA-256, in hex, of
 *          a line "GPA SIZE\n" for each run of private pages in guest physical
 *          memory, in order.  Both are bytes in hex without 0x ("%x").  A run
 *          is as long as can be, over sections and blocks that meet; pages of
 *          a block that appear at two addresses count at both, and those that
 *          do not appear do not count
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include <sys/uio.h>
#include "crypto/hash.h"
#include "hw/core/qdev.h"
#include "qapi/error.h"
#include "qapi/visitor.h"
#include "qemu/bitmap.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/module.h"
#include "system/address-spaces.h"
#include "gmem/system/guest-memfd-internal.h"
#include "system/guest-memfd-events.h"
#include "system/memory.h"

#define TYPE_GUEST_MEMFD_TESTDEV "guest-memfd-testdev"
OBJECT_DECLARE_SIMPLE_TYPE(GuestMemfdTestdev, GUEST_MEMFD_TESTDEV)

/* A rule that is broken once is mostly broken again and again. */
#define ERRORS_REPORTED 10

/* Reading all pages of a long run would allocate them. */
#define READS_IN_A_RUN 64

/*
 * TestSection: a section of RAM with a discard listener
 * @mr: its region; a reference is held
 * @gmem: its block; NULL if that is no guest_memfd, or cannot be private
 * @first: index in the block of the section's first page
 * @pages: number of pages
 * @mapped, @refused: a bit per page of the section
 */
typedef struct TestSection {
    RamDiscardListener listener;
    GuestMemfdTestdev *dev;
    MemoryRegion *mr;
    GuestMemfd *gmem;
    uint64_t first;
    uint64_t pages;
    hwaddr gpa;
    bool registering;
    unsigned long *mapped;
    unsigned long *refused;
    QLIST_ENTRY(TestSection) next;
} TestSection;

struct GuestMemfdTestdev {
    DeviceState parent_obj;

    bool listening;
    uint64_t max_mappings;
    uint64_t refuse_every;
    uint64_t errors;
    uint64_t mapped_pages;
    uint64_t populates;
    uint64_t discards;
    uint64_t until_refusal;
    MemoryListener listener;
    QLIST_HEAD(, TestSection) sections;
};

static void G_GNUC_PRINTF(2, 3) broken(GuestMemfdTestdev *t, const char *fmt,
                                       ...)
{
    g_autofree char *what = NULL;
    va_list ap;

    va_start(ap, fmt);
    what = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    if (t->errors++ < ERRORS_REPORTED) {
        error_report("%s: %s", TYPE_GUEST_MEMFD_TESTDEV, what);
    }
}

/* The gpa of a page of the section */
static hwaddr gpa_of(const TestSection *s, uint64_t page)
{
    return s->gpa + page * qemu_real_host_page_size();
}

static uint8_t *host_of(const TestSection *s, uint64_t page)
{
    return (uint8_t *)memory_region_get_ram_ptr(s->mr) +
           (s->first + page) * qemu_real_host_page_size();
}

/* False where an access would raise SIGBUS */
static bool can_read(void *host)
{
    uint8_t byte;
    struct iovec local = { &byte, 1 }, remote = { host, 1 };

    return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == 1;
}

/* The @i-th of at most READS_IN_A_RUN pages of a run, both ends among them */
static uint64_t sample(uint64_t first, uint64_t end, unsigned i)
{
    uint64_t pages = end - first;

    return first + (pages <= READS_IN_A_RUN
                    ? i : (pages - 1) * i / (READS_IN_A_RUN - 1));
}

/* Finds a page from @first to before @end that cannot be read. */
static bool find_unreadable(const TestSection *s, uint64_t first, uint64_t end,
                            uint64_t *page)
{
    unsigned i;

    for (i = 0; i < MIN(end - first, READS_IN_A_RUN); i++) {
        *page = sample(first, end, i);
        if (!can_read(host_of(s, *page))) {
            return true;
        }
    }
    return false;
}

/* Is a page of zeros mapped over the private page? */
static bool is_covered(const TestSection *s, uint64_t page)
{
    return guest_memfd_is_covered(s->gmem, s->first + page);
}

/* Finds a page from @first to before @end that shows the guest's contents. */
static bool find_readable(const TestSection *s, uint64_t first, uint64_t end,
                          uint64_t *page)
{
    unsigned i;

    for (i = 0; i < MIN(end - first, READS_IN_A_RUN); i++) {
        *page = sample(first, end, i);
        if (can_read(host_of(s, *page)) && !is_covered(s, *page)) {
            return true;
        }
    }
    return false;
}

/*
 * Which pages of the section are private, a bit per page; the caller owns it.
 * NULL if the block cannot be private.
 */
static unsigned long *private_pages(const TestSection *s)
{
    GuestMemfdState *state;
    unsigned long *private;

    if (!s->gmem) {
        return NULL;
    }
    state = &s->gmem->state;
    private = bitmap_new(s->pages);
    QEMU_LOCK_GUARD(&state->lock);
    bitmap_copy_with_src_offset(private, state->shared, s->first, s->pages);
    bitmap_complement(private, private, s->pages);
    return private;
}

/* Sets @first and @end to the pages of @s that @section has; false if none */
static bool pages_of(const TestSection *s, const MemoryRegionSection *section,
                     uint64_t *first, uint64_t *end)
{
    const uint64_t page_size = qemu_real_host_page_size();
    uint64_t offset = section->offset_within_region;
    uint64_t size = int128_get64(section->size);

    if (section->mr != s->mr || !size || (offset | size) % page_size ||
        offset / page_size < s->first ||
        offset / page_size - s->first > s->pages ||
        size / page_size > s->pages - (offset / page_size - s->first)) {
        return false;
    }
    *first = offset / page_size - s->first;
    *end = *first + size / page_size;
    return section->offset_within_address_space == gpa_of(s, *first);
}

static bool refuses(TestSection *s, uint64_t pages)
{
    GuestMemfdTestdev *t = s->dev;

    if (t->max_mappings && pages > t->max_mappings - MIN(t->max_mappings,
                                                         t->mapped_pages)) {
        return true;
    }
    return t->refuse_every && !s->registering &&
           ++t->until_refusal % t->refuse_every == 0;
}

static int notify_populate(RamDiscardListener *rdl,
                           const MemoryRegionSection *section)
{
    TestSection *s = container_of(rdl, TestSection, listener);
    GuestMemfdTestdev *t = s->dev;
    uint64_t first, end, page;

    t->populates++;
    if (!pages_of(s, section, &first, &end)) {
        broken(t, "populate of 0x%" HWADDR_PRIx ", which was not registered",
               section->offset_within_address_space);
        return -EINVAL;
    }
    page = find_next_bit(s->mapped, end, first);
    if (page < end) {
        broken(t, "populate of 0x%" HWADDR_PRIx ", which is mapped",
               gpa_of(s, page));
        bitmap_clear(s->mapped, first, end - first);
    }
    if (s->gmem && guest_memfd_any_private(s->gmem,
                                           section->offset_within_region,
                                           int128_get64(section->size))) {
        broken(t, "populate of 0x%" HWADDR_PRIx ", which is private",
               gpa_of(s, first));
    } else if (find_unreadable(s, first, end, &page)) {
        broken(t, "populate of 0x%" HWADDR_PRIx ", which cannot be read",
               gpa_of(s, page));
    }

    if (refuses(s, end - first)) {
        bitmap_set(s->refused, first, end - first);
        return -ENOSPC;
    }
    bitmap_clear(s->refused, first, end - first);
    bitmap_set(s->mapped, first, end - first);
    t->mapped_pages += end - first;
    return 0;
}

/* Pages that are to be unmapped must still be readable. */
static void check_mapped(TestSection *s, uint64_t first, uint64_t end)
{
    uint64_t run, run_end, page;

    for (run = find_next_bit(s->mapped, end, first); run < end;
         run = find_next_bit(s->mapped, end, run_end)) {
        run_end = find_next_zero_bit(s->mapped, end, run);
        if (find_unreadable(s, run, run_end, &page)) {
            broken(s->dev, "discard of 0x%" HWADDR_PRIx ", which cannot be "
                   "read any more", gpa_of(s, page));
        }
    }
}

static void notify_discard(RamDiscardListener *rdl,
                           const MemoryRegionSection *section)
{
    TestSection *s = container_of(rdl, TestSection, listener);
    GuestMemfdTestdev *t = s->dev;
    uint64_t first, end, page;

    if (!pages_of(s, section, &first, &end)) {
        broken(t, "discard of 0x%" HWADDR_PRIx ", which was not registered",
               section->offset_within_address_space);
        return;
    }
    t->discards += find_next_bit(s->mapped, end, first) < end ||
                   find_next_bit(s->refused, end, first) < end;
    check_mapped(s, first, end);
    for (page = first; page < end; page++) {
        bool mapped = test_and_clear_bit(page, s->mapped);
        bool refused = test_and_clear_bit(page, s->refused);

        t->mapped_pages -= mapped;
        /* A whole section is discarded whatever is mapped of it. */
        if (!mapped && !refused && end - first < s->pages) {
            broken(t, "discard of 0x%" HWADDR_PRIx ", which is not mapped",
                   gpa_of(s, page));
        }
    }
}

/* A ReplayRamDiscardState */
static int add_populated(const MemoryRegionSection *section, void *opaque)
{
    unsigned long *populated = opaque;
    const uint64_t page_size = qemu_real_host_page_size();

    bitmap_set(populated, section->offset_within_region / page_size,
               int128_get64(section->size) / page_size);
    return 0;
}

/*
 * Compares what is mapped, or was refused, with what the RamDiscardManager
 * calls populated: the two are the same whenever the BQL is held.
 * Returns NULL, or the first difference, which the caller owns.
 */
static char *compare_with_manager(TestSection *s)
{
    const uint64_t page_size = qemu_real_host_page_size();
    g_autofree unsigned long *populated =
        bitmap_new(memory_region_size(s->mr) / page_size);
    uint64_t page;

    ram_discard_manager_replay_populated(
        memory_region_get_ram_discard_manager(s->mr), s->listener.section,
        add_populated, populated);
    for (page = 0; page < s->pages; page++) {
        bool mapped = test_bit(page, s->mapped);

        /* A listener that refused a page is not notified of its discard. */
        if (mapped != test_bit(s->first + page, populated) &&
            !test_bit(page, s->refused)) {
            return g_strdup_printf("0x%" HWADDR_PRIx " is %smapped, but %s",
                                   gpa_of(s, page), mapped ? "" : "not ",
                                   mapped ? "discarded" : "populated");
        }
    }
    return NULL;
}

/*
 * The same, for the state of pages.
 * @quiet: no conversion runs; else a shared page may not be mapped yet
 */
static char *compare_with_state(TestSection *s, bool quiet)
{
    g_autofree unsigned long *private = private_pages(s);
    const RamDiscardManager *rdm =
        memory_region_get_ram_discard_manager(s->mr);
    uint64_t page;

    /*
     * Before the guest is launched, nothing is mapped; and another source,
     * such as virtio-mem, may have discarded pages.
     */
    if ((s->gmem && s->gmem->state.launching) ||
        QLIST_NEXT(QLIST_FIRST(&rdm->source_list), next)) {
        quiet = false;
    }
    for (page = 0; private && page < s->pages; page++) {
        bool mapped = test_bit(page, s->mapped);

        if (mapped && test_bit(page, private)) {
            return g_strdup_printf("0x%" HWADDR_PRIx " is mapped and private",
                                   gpa_of(s, page));
        }
        if (quiet && !mapped && !test_bit(page, private) &&
            !test_bit(page, s->refused)) {
            return g_strdup_printf("0x%" HWADDR_PRIx " is neither mapped nor "
                                   "private", gpa_of(s, page));
        }
    }
    return NULL;
}

/* The same, for what can be read. */
static char *compare_with_memory(TestSection *s)
{
    g_autofree unsigned long *private = private_pages(s);
    uint64_t first, end, page;

    for (first = find_first_bit(s->mapped, s->pages); first < s->pages;
         first = find_next_bit(s->mapped, s->pages, end)) {
        end = find_next_zero_bit(s->mapped, s->pages, first);
        if (find_unreadable(s, first, end, &page)) {
            return g_strdup_printf("0x%" HWADDR_PRIx " is mapped, but cannot "
                                   "be read", gpa_of(s, page));
        }
    }
    for (first = private ? find_first_bit(private, s->pages) : s->pages;
         first < s->pages; first = find_next_bit(private, s->pages, end)) {
        end = find_next_zero_bit(private, s->pages, first);
        if (find_readable(s, first, end, &page)) {
            return g_strdup_printf("0x%" HWADDR_PRIx " is private, but can be "
                                   "read", gpa_of(s, page));
        }
    }
    return NULL;
}

static void region_add(MemoryListener *listener, MemoryRegionSection *section)
{
    GuestMemfdTestdev *t = container_of(listener, GuestMemfdTestdev, listener);
    const uint64_t page_size = qemu_real_host_page_size();
    uint64_t size = int128_get64(section->size);
    g_autofree char *difference = NULL;
    TestSection *s;

    /* Devices map whole pages. */
    if (!memory_region_has_ram_discard_manager(section->mr) ||
        (section->offset_within_region | size |
         section->offset_within_address_space) % page_size) {
        return;
    }

    s = g_new0(TestSection, 1);
    s->dev = t;
    s->mr = section->mr;
    s->gmem = guest_memfd_from_host(memory_region_get_ram_ptr(s->mr));
    if (s->gmem && !guest_memfd_can_be_private(s->gmem)) {
        s->gmem = NULL;
    }
    s->first = section->offset_within_region / page_size;
    s->pages = size / page_size;
    s->gpa = section->offset_within_address_space;
    s->mapped = bitmap_new(s->pages);
    s->refused = bitmap_new(s->pages);
    memory_region_ref(s->mr);
    QLIST_INSERT_HEAD(&t->sections, s, next);

    ram_discard_listener_init(&s->listener, notify_populate, notify_discard);
    s->registering = true;
    ram_discard_manager_register_listener(
        memory_region_get_ram_discard_manager(s->mr), &s->listener, section);
    s->registering = false;
    difference = compare_with_manager(s) ?: compare_with_state(s, false);
    if (difference) {
        broken(t, "after registration %s", difference);
    }
}

static void region_del(MemoryListener *listener, MemoryRegionSection *section)
{
    GuestMemfdTestdev *t = container_of(listener, GuestMemfdTestdev, listener);
    TestSection *s;

    QLIST_FOREACH(s, &t->sections, next) {
        if (s->mr == section->mr &&
            s->gpa == section->offset_within_address_space) {
            break;
        }
    }
    if (!s) {
        return;
    }

    ram_discard_manager_unregister_listener(
        memory_region_get_ram_discard_manager(s->mr), &s->listener);
    if (!bitmap_empty(s->mapped, s->pages)) {
        broken(t, "0x%" HWADDR_PRIx " is still mapped when its section goes",
               gpa_of(s, find_first_bit(s->mapped, s->pages)));
        t->mapped_pages -= bitmap_count_one(s->mapped, s->pages);
    }
    QLIST_REMOVE(s, next);
    memory_region_unref(s->mr);
    g_free(s->mapped);
    g_free(s->refused);
    g_free(s);
}

static void start(GuestMemfdTestdev *t)
{
    t->listener = (MemoryListener) {
        .name = TYPE_GUEST_MEMFD_TESTDEV,
        .region_add = region_add,
        .region_del = region_del,
    };
    memory_listener_register(&t->listener, &address_space_memory);
}

static void stop(GuestMemfdTestdev *t)
{
    memory_listener_unregister(&t->listener);
}

static void testdev_realize(DeviceState *dev, Error **errp)
{
    GuestMemfdTestdev *t = GUEST_MEMFD_TESTDEV(dev);

    if (t->listening) {
        start(t);
    }
}

static void testdev_unrealize(DeviceState *dev)
{
    GuestMemfdTestdev *t = GUEST_MEMFD_TESTDEV(dev);

    if (t->listening) {
        stop(t);
    }
}

static bool get_listening(Object *obj, Error **errp)
{
    return GUEST_MEMFD_TESTDEV(obj)->listening;
}

static void set_listening(Object *obj, bool value, Error **errp)
{
    GuestMemfdTestdev *t = GUEST_MEMFD_TESTDEV(obj);

    if (DEVICE(obj)->realized && value != t->listening) {
        (value ? start : stop)(t);
    }
    t->listening = value;
}

static bool listens(GuestMemfdTestdev *t, Error **errp)
{
    if (!t->listening) {
        error_setg(errp, "%s has no record of memory: set listening=on",
                   TYPE_GUEST_MEMFD_TESTDEV);
    }
    return t->listening;
}

static char *get_check(Object *obj, Error **errp)
{
    GuestMemfdTestdev *t = GUEST_MEMFD_TESTDEV(obj);
    TestSection *s;

    if (!listens(t, errp)) {
        return NULL;
    }
    QLIST_FOREACH(s, &t->sections, next) {
        char *difference = compare_with_manager(s) ?:
                           compare_with_state(s, true) ?:
                           compare_with_memory(s);

        if (difference) {
            return difference;
        }
    }
    return g_strdup("");
}

static gint compare_gpa(gconstpointer a, gconstpointer b)
{
    const TestSection *x = a, *y = b;

    return x->gpa < y->gpa ? -1 : x->gpa > y->gpa;
}

static void add_run(GString *text, hwaddr start, hwaddr end)
{
    if (start < end) {
        g_string_append_printf(text, "%" HWADDR_PRIx " %" HWADDR_PRIx "\n",
                               start, end - start);
    }
}

static char *get_digest(Object *obj, Error **errp)
{
    GuestMemfdTestdev *t = GUEST_MEMFD_TESTDEV(obj);
    g_autoptr(GString) text = g_string_new("");
    g_autoptr(GSList) sections = NULL;
    hwaddr start = 0, end = 0;      /* the last run, not yet written */
    char *digest = NULL;
    TestSection *s;
    GSList *l;

    if (!listens(t, errp)) {
        return NULL;
    }
    QLIST_FOREACH(s, &t->sections, next) {
        sections = g_slist_insert_sorted(sections, s, compare_gpa);
    }
    for (l = sections; l; l = l->next) {
        g_autofree unsigned long *private = private_pages(l->data);
        uint64_t first, next;

        s = l->data;
        for (first = private ? find_first_bit(private, s->pages) : s->pages;
             first < s->pages;
             first = find_next_bit(private, s->pages, next)) {
            next = find_next_zero_bit(private, s->pages, first);
            if (gpa_of(s, first) != end) {
                add_run(text, start, end);
                start = gpa_of(s, first);
            }
            end = gpa_of(s, next);
        }
    }
    add_run(text, start, end);
    qcrypto_hash_digest(QCRYPTO_HASH_ALGO_SHA256, text->str, text->len,
                        &digest, errp);
    return digest;
}

/* The ID of "ID NUMBER", which the caller owns, and @number; or NULL */
static char *parse_event(const char *value, uint64_t *number, Error **errp)
{
    g_auto(GStrv) words = g_strsplit(value, " ", 0);

    if (g_strv_length(words) != 2 ||
        qemu_strtou64(words[1], NULL, 0, number) < 0) {
        error_setg(errp, "expected \"ID NUMBER\", got \"%s\"", value);
        return NULL;
    }
    return g_strdup(words[0]);
}

static void set_pinned(Object *obj, const char *value, Error **errp)
{
    uint64_t number;
    g_autofree char *id = parse_event(value, &number, errp);

    if (id) {
        guest_memfd_event_pinned(id, number);
    }
}

static void set_touched(Object *obj, const char *value, Error **errp)
{
    uint64_t number;
    g_autofree char *id = parse_event(value, &number, errp);

    if (id) {
        guest_memfd_event_touched(id, number, number, number);
    }
}

static void testdev_init(Object *obj)
{
    GuestMemfdTestdev *t = GUEST_MEMFD_TESTDEV(obj);
    const struct {
        const char *name;
        uint64_t *value;
        ObjectPropertyFlags access;
    } numbers[] = {
        { "max-mappings", &t->max_mappings, OBJ_PROP_FLAG_READWRITE },
        { "refuse-every", &t->refuse_every, OBJ_PROP_FLAG_READWRITE },
        { "errors", &t->errors, OBJ_PROP_FLAG_READ },
        { "mapped-pages", &t->mapped_pages, OBJ_PROP_FLAG_READ },
        { "populates", &t->populates, OBJ_PROP_FLAG_READ },
        { "discards", &t->discards, OBJ_PROP_FLAG_READ },
    };
    unsigned i;

    for (i = 0; i < ARRAY_SIZE(numbers); i++) {
        object_property_add_uint64_ptr(obj, numbers[i].name, numbers[i].value,
                                       numbers[i].access);
    }
    t->listening = true;
    QLIST_INIT(&t->sections);
}

static void testdev_class_init(ObjectClass *oc, const void *data)
{
    DeviceClass *dc = DEVICE_CLASS(oc);

    dc->desc = "checks notifications of discard listeners, for tests";
    dc->realize = testdev_realize;
    dc->unrealize = testdev_unrealize;
    /* To unplug a device, QEMU asserts a bus or a hotplug handler. */
    dc->hotpluggable = false;
    set_bit(DEVICE_CATEGORY_MISC, dc->categories);
    object_class_property_add_bool(oc, "listening", get_listening,
                                   set_listening);
    object_class_property_add_str(oc, "check", get_check, NULL);
    object_class_property_add_str(oc, "digest", get_digest, NULL);
    object_class_property_add_str(oc, "pinned", NULL, set_pinned);
    object_class_property_add_str(oc, "touched", NULL, set_touched);
}

static const TypeInfo testdev_type = {
    .name = TYPE_GUEST_MEMFD_TESTDEV,
    .parent = TYPE_DEVICE,
    .instance_size = sizeof(GuestMemfdTestdev),
    .instance_init = testdev_init,
    .class_init = testdev_class_init,
};

static void testdev_register(void)
{
    type_register_static(&testdev_type);
}

type_init(testdev_register)
