/*
 * Tables of firmware under libFuzzer
 *
 * An input describes an image: see Head.  If the check accepts it, QEMU's own
 * parsers read it, and must find what they need within the image and the
 * guest's RAM.  The image is a block of the heap of just its size, so that
 * AddressSanitizer sees who reads beyond it.
 *
 *   tables --decide FILE...    prints what the check says of inputs
 *   tables --serve             does so for tests/fuzz/tables.py, see serve()
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * Their function that configures the firmware is not called.  A static one is
 * not compiled either, and needs nothing that it calls.
 */
#define x86_firmware_configure static x86_firmware_configure

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/error-report.h"
#include "qemu/units.h"
#include "qemu/uuid.h"
#include "gmem/target/i386/guest-memfd-tables.h"

G_NORETURN G_GNUC_PRINTF(1, 2)
static void fail(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fputs("FAIL: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    abort();
}

#define ensure(condition) \
    do { \
        if (!(condition)) { \
            fail("line %d: not %s", __LINE__, #condition); \
        } \
    } while (0)

/* QEMU reads numbers that are not aligned, as x86 can. */
#pragma clang attribute push(__attribute__((no_sanitize("alignment"))), \
                             apply_to = function)
#define error_report(...) fail("QEMU: " __VA_ARGS__)
#include "hw/i386/pc_sysfw_ovmf.c"
#include "hw/i386/tdvf.c"
#undef error_report
#pragma clang attribute pop

/* The library's reports of errors call these. */
Object *object_dynamic_cast(Object *obj, const char *name)
{
    return NULL;
}

Object *object_dynamic_cast_assert(Object *obj, const char *name,
                                   const char *file, int line,
                                   const char *func)
{
    fail("cast to %s", name);
}

static uint32_t read32(const void *at)
{
    return ldl_le_p(at);
}

#define PAGE (4 * KiB)
#define UNIT (64 * KiB)
#define TAIL 48                 /* bytes from the table's own GUID on */
#define ENTRY 18                /* bytes of an entry without data */

typedef enum Mode {
    SNP,
    SNP_HASHES,
    TDX,
    MODES,
} Mode;

static const char *const mode_names[] = { "snp", "snp-hashes", "tdx" };

/*
 * Head of an input, little-endian.  The metadata follows, then the image's
 * last bytes.
 * @units: of 64 KiB, the image's size; large ones are around the limit
 * @odd: bytes more than that
 * @distance: from the metadata to the image's end
 * @tail: how many of the bytes are the last ones
 * @more: so many sections follow the last one, each next to the one before
 */
typedef struct QEMU_PACKED Head {
    uint8_t mode;
    uint8_t ram;                /* index into ram_ends */
    uint8_t units;
    uint8_t odd;
    uint32_t distance;
    uint16_t tail;
    uint16_t more;
} Head;

/* Where RAM below 4 GiB ends; 0 is where the image starts. */
static const uint64_t ram_ends[] = {
    256 * MiB, 8 * MiB, 16 * MiB, 2 * GiB, 4 * GiB, 0,
};
#define UNITS_BELOW 65
#define FIRST_AROUND (GUEST_MEMFD_FIRMWARE_MAX / UNIT - 2)
#define UNITS_AROUND 5
#define MAX_MORE 1100

typedef struct Case {
    Mode mode;
    uint64_t ram;
    size_t size;
    uint8_t *image;
    bool owned;                 /* is not one of images[] */
    /* Ranges of the image that are not the template's */
    size_t metadata, metadata_end, tail;
} Case;

/* Templates by index: contents are restored after each input. */
static uint8_t *images[UNITS_BELOW + UNITS_AROUND];

/* Pages of the template have contents, but the third of each four. */
static void fill(uint8_t *image, size_t from, size_t to)
{
    while (from < to) {
        size_t page = from / PAGE, next = MIN(to, (page + 1) * PAGE);

        memset(image + from, page % 4 == 2 ? 0 : 0x80 | page, next - from);
        from = next;
    }
}

static size_t section_size(Mode mode)
{
    return mode == TDX ? 32 : 12;
}

/* One section more: a copy of @last that begins @nr sizes further on. */
static void next_section(Mode mode, uint8_t *section, const uint8_t *last,
                         unsigned nr)
{
    memcpy(section, last, section_size(mode));
    if (mode == TDX) {
        stq_le_p(section + 8, ldq_le_p(last + 8) + nr * ldq_le_p(last + 16));
    } else {
        stl_le_p(section, read32(last) + nr * read32(last + 4));
    }
}

static unsigned image_index(const Head *head)
{
    return head->units < UNITS_BELOW
        ? head->units : UNITS_BELOW + head->units % UNITS_AROUND;
}

static unsigned image_units(const Head *head)
{
    unsigned i = image_index(head);

    return i < UNITS_BELOW ? i : FIRST_AROUND + i - UNITS_BELOW;
}

static void case_begin(Case *c, const uint8_t *data, size_t size)
{
    g_autofree uint8_t *metadata = NULL;
    unsigned units, more, i;
    size_t tail, length;
    uint32_t distance;
    Head head = {};

    memcpy(&head, data, MIN(size, sizeof(head)));
    data += MIN(size, sizeof(head));
    size -= MIN(size, sizeof(head));

    *c = (Case) { .mode = head.mode % MODES };
    i = image_index(&head);
    units = image_units(&head);
    if (head.odd) {
        c->owned = true;
        c->size = units % 3 * UNIT + head.odd;
        c->image = malloc(c->size);
        fill(c->image, 0, c->size);
    } else {
        c->size = units * UNIT;
        if (!images[i]) {
            images[i] = malloc(c->size);
            fill(images[i], 0, c->size);
        }
        c->image = images[i];
    }
    c->ram = ram_ends[head.ram % ARRAY_SIZE(ram_ends)] ?: 4 * GiB - c->size;

    tail = MIN(le16_to_cpu(head.tail), size);
    length = size - tail;
    more = length < 16 + section_size(c->mode)
           ? 0 : le16_to_cpu(head.more) % MAX_MORE;
    metadata = g_malloc(length + more * section_size(c->mode) + 1);
    memcpy(metadata, data, length);
    for (i = 0; i < more; i++) {
        next_section(c->mode, metadata + length + i * section_size(c->mode),
                     metadata + length - section_size(c->mode), i + 1);
    }

    distance = le32_to_cpu(head.distance);
    c->metadata = c->size - MIN(distance, c->size);
    if (distance <= c->size) {
        size_t n = MIN(length + more * section_size(c->mode), distance);

        memcpy(c->image + c->metadata, metadata, n);
        c->metadata_end = c->metadata + n;
    }
    tail = MIN(tail, c->size);
    c->tail = c->size - tail;
    memcpy(c->image + c->tail, data + size - tail, tail);
}

static void case_end(Case *c)
{
    if (c->owned) {
        free(c->image);
    } else {
        fill(c->image, c->metadata, c->metadata_end);
        fill(c->image, c->tail, c->size);
    }
}

static bool is_one_piece(uint64_t gpa, uint64_t size)
{
    return true;
}

static bool check(const Case *c, uint64_t ram, Error **errp)
{
    return c->mode == TDX
        ? guest_memfd_check_tdx_tables(c->image, c->size, ram, is_one_piece,
                                       errp)
        : guest_memfd_check_snp_tables(c->image, c->size, ram, is_one_piece,
                                       c->mode == SNP_HASHES, errp);
}

/* --- what must hold if the check accepts an image --- */

static bool within(uint64_t start, uint64_t size, uint64_t from, uint64_t to)
{
    return start >= from && start < to && size <= to - start;
}

static bool in_ram(const Case *c, uint64_t gpa, uint64_t size)
{
    return within(gpa, size, 0, 0xa0000 < c->ram ? 0xa0000 : c->ram) ||
           within(gpa, size, 0x100000, c->ram);
}

/* Pages that the launch has, in 4 GiB; cleared by claim_none(). */
static uint64_t claimed[4 * GiB / PAGE / 64];
static struct {
    uint64_t page, pages;
} claims[2048];
static unsigned nr_claims;

static void claim(uint64_t gpa, uint64_t size)
{
    uint64_t page = gpa / PAGE, end = (gpa + size) / PAGE, i;

    ensure(size && gpa % PAGE == 0 && size % PAGE == 0);
    ensure(gpa < 4 * GiB && size <= 4 * GiB - gpa);
    ensure(nr_claims < ARRAY_SIZE(claims));
    claims[nr_claims].page = page;
    claims[nr_claims++].pages = end - page;
    for (i = page; i < end; i++) {
        if (i % 64 == 0 && end - i >= 64) {
            ensure(!claimed[i / 64]);
            claimed[i / 64] = ~0ull;
            i += 63;
            continue;
        }
        ensure(!(claimed[i / 64] & 1ull << i % 64));
        claimed[i / 64] |= 1ull << i % 64;
    }
}

static void claim_none(void)
{
    while (nr_claims) {
        uint64_t page = claims[--nr_claims].page;
        uint64_t last = page + claims[nr_claims].pages - 1;

        memset(&claimed[page / 64], 0,
               (last / 64 - page / 64 + 1) * sizeof(claimed[0]));
    }
}

/* What sev.c does with the table, which does not link without all of QEMU */
static void ensure_snp(const Case *c)
{
    uint8_t *data, *metadata;
    uint32_t distance, length, nr, i, base = 0;
    bool hashes = false;
    int size;

    ensure(pc_system_ovmf_table_find("00f771de-1a7e-4fcb-890e-68c77e2fb44e",
                                     &data, &size));
    ensure(size == 4 && read32(data));
    if (c->mode == SNP_HASHES) {
        ensure(pc_system_ovmf_table_find(
            "7255371f-3a3b-4b04-927b-1da6efa8d454", &data, &size));
        base = read32(data);
        ensure(size == 8 && base && read32(data + 4) >= 176);
        ensure(base % PAGE + 176 <= PAGE);
    }

    ensure(pc_system_ovmf_table_find("dc886566-984a-4798-a75e-5585a7bf67cc",
                                     &data, &size));
    distance = read32(data);
    ensure(size == 4 && distance >= 16 && distance <= c->size);
    metadata = c->image + c->size - distance;
    length = read32(metadata + 4);
    nr = read32(metadata + 12);
    ensure(!memcmp(metadata, "ASEV", 4) && read32(metadata + 8) == 1);
    ensure(length >= 16 && length <= distance);
    /* The condition of pc_system_parse_sev_metadata(), as it stands there */
    ensure(length <= c->size - distance);
    ensure(nr <= 1024 && nr <= (length - 16) / 12);

    claim(4 * GiB - c->size, c->size);
    for (i = 0; i < nr; i++) {
        const uint8_t *section = metadata + 16 + 12 * i;
        uint32_t gpa = read32(section), bytes = read32(section + 4);

        ensure(in_ram(c, gpa, bytes));
        claim(gpa, bytes);
        if (c->mode == SNP_HASHES && read32(section + 8) == 0x10) {
            hashes = true;
            ensure(base / PAGE == gpa / PAGE);
        }
    }
    ensure(hashes == (c->mode == SNP_HASHES));
}

static void ensure_tdx(const Case *c)
{
    unsigned hobs = 0, areas = 2;
    uint64_t hob_size = 0;
    TdxFirmwareEntry *entry;
    TdxFirmware fw = {};

    ensure(!tdvf_parse_metadata(&fw, c->image, c->size));
    ensure(fw.nr_entries >= 2 && fw.nr_entries <= 1024);
    ensure(fw.mem_ptr == c->image);
    for_each_tdx_fw_entry(&fw, entry) {
        bool ram = in_ram(c, entry->address, entry->size);

        claim(entry->address, entry->size);
        if (entry->type == TDVF_SECTION_TYPE_BFV ||
            entry->type == TDVF_SECTION_TYPE_CFV) {
            ensure(ram || within(entry->address, entry->size,
                                 4 * GiB - c->size, 4 * GiB));
            ensure(within(entry->data_offset, entry->size, 0, c->size));
            ensure(entry->data_offset % PAGE == 0);
            ensure(entry->data_len && entry->data_len <= entry->size);
            if (entry->type == TDVF_SECTION_TYPE_BFV) {
                const uint8_t *at = c->image + entry->data_offset;

                ensure(*at || memcmp(at, at + 1, entry->size - 1));
            }
            continue;
        }
        ensure(ram && !entry->data_len);
        areas += 2;
        if (entry->type == TDVF_SECTION_TYPE_TD_HOB) {
            hobs++;
            hob_size = entry->size;
            ensure(!(entry->attributes & TDVF_SECTION_ATTRIBUTES_MR_EXTEND));
        }
    }
    ensure(hobs == 1 && 56 + 8 + 48 * areas <= hob_size);
    g_free(fw.entries);
}

/* Reads the image as QEMU does. */
static void ensure_launchable(const Case *c)
{
    /* The local APIC has 1 MiB there. */
    ensure(4 * GiB - c->size >= 0xfee00000 + MiB);
    ensure(c->size % UNIT == 0);
    pc_system_parse_ovmf_flash(c->image, c->size);
    if (c->mode == TDX) {
        ensure_tdx(c);
    } else {
        ensure_snp(c);
    }
    claim_none();
    guest_memfd_forget_table(&ovmf_table, &ovmf_table_len);
    ovmf_flash_parsed = false;
}

/* What the check says: NULL if it accepts the image, or a reason to free */
static char *decide(const Case *c, uint64_t ram)
{
    Error *err = NULL;
    char *reason;

    if (check(c, ram, &err)) {
        ensure(!err && check(c, ram, NULL));
        return NULL;
    }
    ensure(err && !check(c, ram, NULL));
    reason = g_strdup(error_get_pretty(err));
    ensure(*reason && !strchr(reason, '\n'));
    error_free(err);
    return reason;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autofree char *reason = NULL;
    Case c;

    if (!size) {
        return 0;
    }
    case_begin(&c, data, size);
    reason = decide(&c, c.ram);
    if (!reason) {
        ensure_launchable(&c);
    }
    case_end(&c);
    return 0;
}

/* --- changes that keep most of an image as it is --- */

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

static uint32_t seed;

/* The same from the same @seed: from 0 to @limit - 1 */
static uint32_t pick(uint32_t limit)
{
    seed = seed * 1103515245 + 12345;
    return (seed >> 8) % limit;
}

static uint64_t pick_number(const Head *head, const uint8_t *metadata,
                            size_t length)
{
    static const uint64_t numbers[] = {
        0, 1, 2, 3, 4, 16, ENTRY, 32, 176, 1024, PAGE, UNIT, 0x9f000, 0xa0000,
        0x100000, 0xfee00000, 2 * GiB, 4 * GiB - 1, 4 * GiB, INT64_MAX,
        UINT64_MAX,
    };
    static const int64_t deltas[] = {
        0, 0, 0, 1, -1, 12, -16, 16, PAGE, -(int64_t)PAGE,
    };
    uint64_t image = image_units(head) * UNIT;
    uint64_t n;

    switch (pick(6)) {
    case 0:
        n = ram_ends[head->ram % ARRAY_SIZE(ram_ends)];
        break;
    case 1:
        n = pick(2) ? 4 * GiB - image : image;
        break;
    case 2:
        /* Where some section begins, or ends */
        if (length >= 16 + section_size(head->mode)) {
            const uint8_t *section = metadata + 16 + section_size(head->mode) *
                pick((length - 16) / section_size(head->mode));

            n = head->mode == TDX ? ldq_le_p(section + 8) : read32(section);
            if (pick(2)) {
                n += head->mode == TDX ? ldq_le_p(section + 16)
                                       : read32(section + 4);
            }
            break;
        }
        /* fall through */
    case 3:
        n = le32_to_cpu(head->distance);
        break;
    default:
        n = numbers[pick(ARRAY_SIZE(numbers))];
    }
    return n + deltas[pick(ARRAY_SIZE(deltas))];
}

/*
 * A gpa where hashes of a kernel could be: in some section's first page, or
 * behind it.  The section may be moved.
 */
static uint32_t pick_hashes(const Head *head, uint8_t *metadata, size_t length,
                            uint64_t number)
{
    static const uint32_t deltas[] = { 0, 16, PAGE - 176, PAGE - 175, PAGE };
    size_t size = section_size(head->mode);
    uint8_t *section;

    if (head->mode == TDX || length < 16 + size) {
        return 0;
    }
    section = metadata + 16 + size * pick((length - 16) / size);
    if (pick(2)) {
        stl_le_p(section, pick(4) ? number & ~(PAGE - 1) : 0);
        stl_le_p(section + 8, 0x10);
    }
    return read32(section) + deltas[pick(ARRAY_SIZE(deltas))];
}

/*
 * Changes an entry of the table in the last bytes, or its length.
 * @tail: of @length bytes; the metadata is before it
 */
static void mutate_table(const Head *head, uint8_t *metadata,
                         uint8_t *tail, size_t length, uint64_t number)
{
    static const char *const guids[] = {
        "96b582de-1fb2-45f7-baea-a366c55a082d",
        "00f771de-1a7e-4fcb-890e-68c77e2fb44e",
        "7255371f-3a3b-4b04-927b-1da6efa8d454",
        "dc886566-984a-4798-a75e-5585a7bf67cc",
        "e47a6535-984a-4798-865e-4685a7bf8ec2",
    };
    const size_t table = length - TAIL + 16;
    size_t at = table, entry_size;
    unsigned nr = pick(8);
    QemuUUID guid;

    /* Entry 0 is the table's own. */
    while (nr--) {
        entry_size = at == table ? ENTRY : lduw_le_p(tail + at - ENTRY);
        if (entry_size < ENTRY || entry_size + ENTRY > at) {
            break;
        }
        at -= entry_size;
    }
    switch (pick(10)) {
    case 0:
        stw_le_p(tail + at - ENTRY, number);
        break;
    case 1:
        stw_le_p(tail + at - ENTRY,
                 lduw_le_p(tail + at - ENTRY) + pick(9) - 4);
        break;
    case 2:
        qemu_uuid_parse(guids[pick(ARRAY_SIZE(guids))], &guid);
        guid = qemu_uuid_bswap(guid);
        memcpy(tail + at - 16, &guid, sizeof(guid));
        break;
    case 3:
        if (at >= ENTRY + 8) {
            stl_le_p(tail + at - ENTRY - 8, number);
        }
        break;
    case 4:
        if (at >= ENTRY + 4) {
            stl_le_p(tail + at - ENTRY - 4, le32_to_cpu(head->distance));
        }
        break;
    case 5:
        if (at >= ENTRY + 8) {
            stl_le_p(tail + at - ENTRY - 8,
                     pick_hashes(head, metadata, tail - metadata, number));
        }
        break;
    case 6:
        /* The table is about as large as can be, and this entry is the rest */
        stw_le_p(tail + table - ENTRY, UNIT - pick(64));
        if (at < table) {
            stw_le_p(tail + at - ENTRY, lduw_le_p(tail + table - ENTRY) -
                     (table - at) - (pick(2) ? 0 : pick(ENTRY)));
        }
        break;
    default:
        if (at >= ENTRY + 4) {
            stl_le_p(tail + at - ENTRY - 4, number);
        }
    }
}

/* Changes a number of a section, or what a section for TDX has of the file. */
static void mutate_section(const Head *head, uint8_t *section, uint64_t number)
{
    unsigned field = pick(section_size(head->mode) / 4);

    if (head->mode == TDX && pick(6) == 0) {
        uint32_t size = PAGE * (1 + pick(3));

        stl_le_p(section, PAGE * pick(image_units(head) * UNIT / PAGE + 1));
        stl_le_p(section + 4, size - (pick(4) ? 0 : pick(PAGE)));
        stq_le_p(section + 16, size);
    } else if (field == (head->mode == TDX ? 6 : 2)) {
        stl_le_p(section + 4 * field, pick(8) ? pick(6) : 0x10);
    } else if (head->mode == TDX && (field == 2 || field == 4)) {
        stq_le_p(section + 4 * field, number);
    } else {
        stl_le_p(section + 4 * field, number);
    }
}

/* Adds or takes away sections; returns the metadata's new length. */
static size_t mutate_count(const Head *head, uint8_t *metadata, size_t length,
                           size_t behind, size_t max)
{
    size_t size = section_size(head->mode);
    size_t nr = (length - 16) / size;
    uint8_t *at = metadata + 16 + size * pick(nr + 1);

    if (pick(2)) {
        if (max - length - behind < size) {
            return length;
        }
        memmove(at + size, at, metadata + length + behind - at);
        if (nr) {
            next_section(head->mode, at, metadata + 16, pick(4));
        }
        length += size;
    } else if (at + size <= metadata + length) {
        memmove(at, at + size, metadata + length + behind - at - size);
        length -= size;
    }
    return length;
}

/* The metadata's own numbers, as they are in good firmware */
static void repair(const Head *head, uint8_t *metadata, size_t length)
{
    size_t size = section_size(head->mode);
    size_t nr = (length - 16) / size + le16_to_cpu(head->more) % MAX_MORE;

    memcpy(metadata, head->mode == TDX ? "TDVF" : "ASEV", 4);
    stl_le_p(metadata + 4, 16 + nr * size);
    stl_le_p(metadata + 8, 1);
    stl_le_p(metadata + 12, nr);
}

/* About as many sections as a TD_HOB of one page can list */
static void fill_hob(Head *head, uint8_t *metadata, size_t length)
{
    uint8_t *last = metadata + length - section_size(head->mode);

    if (head->mode != TDX) {
        return;
    }
    memset(last, 0, 8);
    stq_le_p(last + 8, MiB * (1 + pick(6)));
    stq_le_p(last + 16, PAGE);
    stl_le_p(last + 24, TDVF_SECTION_TYPE_TEMP_MEM);
    head->more = cpu_to_le16(34 + pick(12));
    repair(head, metadata, length);
}

static size_t mutate(uint8_t *data, size_t size, size_t max_size)
{
    uint8_t *metadata = data + sizeof(Head);
    size_t tail, length, nr;
    uint64_t number;
    Head head;

    memcpy(&head, data, sizeof(head));
    head.mode %= MODES;
    tail = MIN(le16_to_cpu(head.tail), size - sizeof(head));
    length = size - sizeof(head) - tail;
    number = pick_number(&head, metadata, length);
    switch (pick(10)) {
    case 0:
        switch (pick(6)) {
        case 0:
            head.mode = pick(MODES);
            break;
        case 1:
            head.ram = pick(ARRAY_SIZE(ram_ends));
            break;
        case 2:
            head.units = "\1\1\1\2\x10\x40\x43\x44"[pick(8)];
            break;
        case 3:
            head.more = cpu_to_le16(pick(2) ? 0 : pick(2) ? pick(60)
                                                : 1010 + pick(30));
            if (length >= 16 + section_size(head.mode) && pick(2)) {
                fill_hob(&head, metadata, length);
            }
            break;
        case 4:
            head.odd = pick(8) ? 0 : pick(256);
            break;
        default:
            head.distance = cpu_to_le32(number);
        }
        memcpy(data, &head, sizeof(head));
        break;
    case 1:
        if (length >= 16) {
            stl_le_p(metadata + 4 * pick(4), number);
        }
        break;
    case 2:
        if (length >= 16) {
            length = mutate_count(&head, metadata, length, tail,
                                  max_size - sizeof(head));
            repair(&head, metadata, length);
        }
        break;
    case 3:
    case 4:
    case 5:
    case 6:
        if (length >= 16 + section_size(head.mode)) {
            nr = pick((length - 16) / section_size(head.mode));
            mutate_section(&head, metadata + 16 + nr * section_size(head.mode),
                           number);
        }
        break;
    default:
        if (tail >= TAIL + ENTRY) {
            mutate_table(&head, metadata, metadata + length, tail, number);
        }
    }
    if (length >= 16 && pick(4) == 0) {
        repair(&head, metadata, length);
    }
    return sizeof(head) + length + tail;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size,
                               unsigned int first)
{
    seed = first;
    if (size < sizeof(Head) + TAIL || size > max_size || pick(3) == 0) {
        return LLVMFuzzerMutate(data, size, max_size);
    }
    do {
        size = mutate(data, size, max_size);
    } while (pick(3) == 0);
    return size;
}

/* --- other uses of the program --- */

static int decide_files(char **paths)
{
    for (; *paths; paths++) {
        g_autofree char *data = NULL, *reason = NULL;
        gsize size;
        Case c;

        if (!g_file_get_contents(*paths, &data, &size, NULL)) {
            fprintf(stderr, "cannot read %s\n", *paths);
            return 2;
        }
        case_begin(&c, (uint8_t *)data, size);
        reason = decide(&c, c.ram);
        printf("%s: %s, %zu bytes, RAM to 0x%" PRIx64 ": %s%s\n", *paths,
               mode_names[c.mode], c.size, c.ram,
               reason ? "refused: " : "accepted", reason ?: "");
        case_end(&c);
    }
    return 0;
}

/*
 * Answers lines "RAM SEED PATH", where RAM is 0 for up to the image, 1 for the
 * input's, or bytes.  If SEED is not 0, the input is changed, as that says.
 * The answer: a line "MODE RAM SIZE BYTES REASON", where REASON is empty if
 * the check accepts the image; the image of SIZE bytes; the input of BYTES.
 */
static int serve(void)
{
    const size_t max_size = 8 * KiB;
    uint8_t *buffer = g_malloc(max_size);
    char line[PATH_MAX + 64];

    while (fgets(line, sizeof(line), stdin)) {
        g_autofree char *data = NULL, *reason = NULL;
        uint64_t ram;
        gsize size;
        int at;
        Case c;

        g_strchomp(line);
        if (sscanf(line, "%" SCNu64 " %" SCNu32 " %n", &ram, &seed,
                   &at) != 2 ||
            !g_file_get_contents(line + at, &data, &size, NULL)) {
            fprintf(stderr, "cannot read %s\n", line);
            return 2;
        }
        size = MIN(size, max_size);
        memcpy(buffer, data, size);
        if (seed && size >= sizeof(Head) + TAIL) {
            do {
                size = mutate(buffer, size, max_size);
            } while (pick(3) == 0);
        }
        case_begin(&c, buffer, size);
        if (ram != 1) {
            c.ram = ram ?: 4 * GiB - c.size;
        }
        reason = decide(&c, c.ram);
        if (!reason) {
            ensure_launchable(&c);
        }
        printf("%s %" PRIu64 " %zu %zu %s\n", mode_names[c.mode], c.ram,
               c.size, (size_t)size, reason ?: "");
        fwrite(c.image, 1, c.size, stdout);
        fwrite(buffer, 1, size, stdout);
        fflush(stdout);
        case_end(&c);
    }
    g_free(buffer);
    return 0;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    if (*argc > 1 && !strcmp((*argv)[1], "--decide")) {
        exit(decide_files(*argv + 2));
    }
    if (*argc > 1 && !strcmp((*argv)[1], "--serve")) {
        exit(serve());
    }
    return 0;
}
