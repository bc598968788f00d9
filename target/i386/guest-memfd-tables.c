/*
 * Tables in the firmware of confidential guests
 *
 * scripts/gmemlab/measure.py decides the same, and tests/fuzz/tables compares
 * the two.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "hw/i386/guest-memfd-firmware.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "qemu/units.h"
#include "qemu/uuid.h"
#include "gmem/target/i386/guest-memfd-tables.h"

#define PAGE (4 * KiB)

/* Below 4 GiB, where displays and option ROMs hide RAM */
#define LEGACY_START (640 * KiB)
#define LEGACY_END (1 * MiB)

/*
 * Sections of one image.  Real ones have less than 20; each is launched on its
 * own.
 */
#define MAX_SECTIONS 1024

/* Bytes behind the table of entries: the code at the reset vector. */
#define TABLE_TAIL 32

/* In the table, data of an entry comes before this. */
typedef struct QEMU_PACKED EntryEnd {
    uint16_t length;            /* with the data and this */
    QemuUUID guid;
} EntryEnd;

/* What both kinds of metadata begin with */
typedef struct QEMU_PACKED Metadata {
    char signature[4];
    uint32_t length;            /* with this */
    uint32_t version;
    uint32_t sections;
} Metadata;

typedef struct QEMU_PACKED AsevSection {
    uint32_t gpa;
    uint32_t size;
    uint32_t type;
} AsevSection;

typedef struct QEMU_PACKED TdvfSection {
    uint32_t data_offset;
    uint32_t data_size;
    uint64_t gpa;
    uint64_t size;
    uint32_t type;
    uint32_t attributes;
} TdvfSection;

/* Types of sections: OVMF's OvmfSevMetadata, TDVF Design Guide. */
enum {
    ASEV_SEC_MEM = 1,
    ASEV_SECRETS = 2,
    ASEV_CPUID = 3,
    ASEV_SVSM_CAA = 4,
    ASEV_KERNEL_HASHES = 0x10,
};
enum {
    TDVF_BFV,
    TDVF_CFV,
    TDVF_TD_HOB,
    TDVF_TEMP_MEM,
    TDVF_TYPES,
};
#define TDVF_MR_EXTEND 1        /* attribute: contents are measured */

/*
 * Bytes of a TD_HOB that QEMU writes: a header of 56 and an end of 8, and 48
 * for each area of RAM (UEFI PI specification, volume 3, HOB).  There are two
 * areas; a section in the middle of one makes two more.
 */
#define HOB_ENDS (56 + 8)
#define HOB_AREA 48

/* Bytes of QEMU's table of hashes: one header, three hashes, padding */
#define HASHES_SIZE 176

static const QemuUUID table_guid = {
    .data = UUID_LE(0x96b582de, 0x1fb2, 0x45f7, 0xba, 0xea,
                    0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d),
};
static const QemuUUID sev_reset_guid = {
    .data = UUID_LE(0x00f771de, 0x1a7e, 0x4fcb, 0x89, 0x0e,
                    0x68, 0xc7, 0x7e, 0x2f, 0xb4, 0x4e),
};
static const QemuUUID sev_hashes_guid = {
    .data = UUID_LE(0x7255371f, 0x3a3b, 0x4b04, 0x92, 0x7b,
                    0x1d, 0xa6, 0xef, 0xa8, 0xd4, 0x54),
};
static const QemuUUID asev_guid = {
    .data = UUID_LE(0xdc886566, 0x984a, 0x4798, 0xa7, 0x5e,
                    0x55, 0x85, 0xa7, 0xbf, 0x67, 0xcc),
};
static const QemuUUID tdvf_guid = {
    .data = UUID_LE(0xe47a6535, 0x984a, 0x4798, 0x86, 0x5e,
                    0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2),
};

/*
 * Image: what is checked
 * @table: the first entry's data
 * @end: where the last entry ends, which stands next to the table's own
 * @gpa: where the guest finds it
 * @ram: where RAM below 4 GiB ends
 * @is_one_piece: of RAM there
 */
typedef struct Image {
    const uint8_t *data;
    size_t size;
    const uint8_t *table;
    const uint8_t *end;
    uint64_t gpa;
    uint64_t ram;
    GuestMemfdIsOnePiece *is_one_piece;
} Image;

/*
 * Section: memory that the launch populates
 * @number: in the firmware's list, from 0
 */
typedef struct Section {
    uint32_t number;
    const char *name;
    uint64_t gpa;
    uint64_t size;
} Section;

static bool read_image(Image *image, const uint8_t *data, size_t size,
                       uint64_t ram, GuestMemfdIsOnePiece *is_one_piece,
                       Error **errp)
{
    const uint8_t *footer;
    EntryEnd end;
    uint16_t length;

    if (!size || size % GUEST_MEMFD_FIRMWARE_UNIT ||
        size > GUEST_MEMFD_FIRMWARE_MAX) {
        error_setg(errp, "it has 0x%zx bytes; QEMU takes multiples of 0x%x, "
                   "up to 0x%x, as it has to end at 4 GiB and the local APIC "
                   "has 1 MiB at 0xfee00000", size, GUEST_MEMFD_FIRMWARE_UNIT,
                   GUEST_MEMFD_FIRMWARE_MAX);
        return false;
    }
    footer = data + size - TABLE_TAIL - sizeof(end);
    memcpy(&end, footer, sizeof(end));
    if (!qemu_uuid_is_equal(&end.guid, &table_guid)) {
        error_setg(errp, "it has no table of GUIDs at its end, so it is not "
                   "firmware for confidential guests; OVMF built for them has");
        return false;
    }
    length = le16_to_cpu(end.length);
    if (length < sizeof(end) || length > size - TABLE_TAIL) {
        error_setg(errp, "its table of GUIDs says that it has %u bytes, of "
                   "which at least %zu must be and 0x%zx can be", length,
                   sizeof(end), size - TABLE_TAIL);
        return false;
    }
    *image = (Image) {
        .data = data,
        .size = size,
        .table = footer + sizeof(end) - length,
        .end = footer,
        .gpa = 4 * GiB - size,
        /* Large RAM of machine "pc" is behind the image: max-ram-below-4g */
        .ram = MIN(ram, 4 * GiB - size),
        .is_one_piece = is_one_piece,
    };
    return true;
}

/*
 * Data of the entry @guid, NULL if there is none.  Entries are read from the
 * end; the first that is found counts, but all are checked.
 */
static bool find_entry(const Image *image, const QemuUUID *guid,
                       const uint8_t **data, size_t *size, Error **errp)
{
    const uint8_t *at = image->end;
    EntryEnd end;

    *data = NULL;
    while (at > image->table) {
        size_t left = at - image->table;
        uint16_t length = 0;

        if (left >= sizeof(end)) {
            memcpy(&end, at - sizeof(end), sizeof(end));
            length = le16_to_cpu(end.length);
        }
        if (length < sizeof(end) || length > left) {
            error_setg(errp, "its table of GUIDs is broken at offset 0x%tx of "
                       "the file: an entry of %u bytes, with %zu left",
                       at - image->data, length, left);
            return false;
        }
        at -= length;
        if (!*data && qemu_uuid_is_equal(&end.guid, guid)) {
            *data = at;
            *size = length - sizeof(end);
        }
    }
    return true;
}

/* Reads the numbers of an entry; NULL as @guid's data means there is none. */
static bool read_entry(const Image *image, const QemuUUID *guid,
                       const char *name, uint32_t *numbers, size_t nr,
                       Error **errp)
{
    const uint8_t *data;
    size_t size, i;

    if (!find_entry(image, guid, &data, &size, errp)) {
        return false;
    }
    if (!data) {
        error_setg(errp, "its table of GUIDs has no entry for %s; take "
                   "firmware that is built for this kind of guest", name);
        return false;
    }
    if (size != nr * sizeof(*numbers)) {
        error_setg(errp, "the entry for %s in its table of GUIDs has %zu "
                   "bytes of data, and not %zu", name, size,
                   nr * sizeof(*numbers));
        return false;
    }
    for (i = 0; i < nr; i++) {
        numbers[i] = ldl_le_p(data + i * sizeof(*numbers));
    }
    return true;
}

/*
 * Reads the head of the list that an entry leads to.
 * @offset: where the list is in the image
 */
static bool read_metadata(const Image *image, const QemuUUID *guid,
                          const char *name, size_t section_size,
                          Metadata *metadata, size_t *offset, Error **errp)
{
    uint32_t distance;
    uint64_t used;

    if (!read_entry(image, guid, name, &distance, 1, errp)) {
        return false;
    }
    if (distance < sizeof(*metadata) || distance > image->size) {
        error_setg(errp, "its %s metadata would begin 0x%x bytes before the "
                   "end of the file, which has 0x%zx bytes", name, distance,
                   image->size);
        return false;
    }
    *offset = image->size - distance;
    memcpy(metadata, image->data + *offset, sizeof(*metadata));
    if (memcmp(metadata->signature, name, sizeof(metadata->signature))) {
        error_setg(errp, "at offset 0x%zx of the file, where its table says, "
                   "there is no %s metadata", *offset, name);
        return false;
    }
    metadata->length = le32_to_cpu(metadata->length);
    metadata->version = le32_to_cpu(metadata->version);
    metadata->sections = le32_to_cpu(metadata->sections);
    if (metadata->version != 1) {
        error_setg(errp, "its %s metadata has version %u, and only version 1 "
                   "is known", name, metadata->version);
        return false;
    }
    used = sizeof(*metadata) + (uint64_t)metadata->sections * section_size;
    if (metadata->sections > MAX_SECTIONS || metadata->length < used ||
        metadata->length > distance) {
        error_setg(errp, "its %s metadata has %u sections in a length of 0x%x "
                   "bytes; there can be %u, they need 0x%" PRIx64 " bytes, "
                   "and 0x%x are left in the file", name, metadata->sections,
                   metadata->length, MAX_SECTIONS, used, distance);
        return false;
    }
    return true;
}

static bool is_in_ram(const Image *image, const Section *s)
{
    return s->size <= image->ram && s->gpa <= image->ram - s->size &&
           (s->gpa + s->size <= LEGACY_START || s->gpa >= LEGACY_END);
}

static bool is_in_image(const Image *image, const Section *s)
{
    return s->size <= image->size && s->gpa >= image->gpa &&
           s->gpa <= 4 * GiB - s->size;
}

/* @in_image: it may be where the image is. */
static bool check_section(const Image *image, const Section *s, bool in_image,
                          Error **errp)
{
    if (!s->size || !QEMU_IS_ALIGNED(s->gpa | s->size, PAGE)) {
        error_setg(errp, "section %u (%s) of its metadata asks for 0x%" PRIx64
                   " bytes at gpa 0x%" PRIx64 "; it has to be whole pages of "
                   "0x%" PRIx64 " bytes", s->number, s->name, s->size, s->gpa,
                   (uint64_t)PAGE);
        return false;
    }
    if (!is_in_ram(image, s) && !(in_image && is_in_image(image, s))) {
        error_setg(errp, "section %u (%s) of its metadata asks for 0x%" PRIx64
                   " bytes at gpa 0x%" PRIx64 "; below 4 GiB the guest has "
                   "RAM up to 0x%" PRIx64 ", without 0x%" PRIx64 " to 0x%"
                   PRIx64 "%s; if that is too little, give it more (-m)",
                   s->number, s->name, s->size, s->gpa, image->ram,
                   (uint64_t)LEGACY_START, (uint64_t)LEGACY_END - 1,
                   in_image ? ", and the image" : "");
        return false;
    }
    if (is_in_ram(image, s) && !image->is_one_piece(s->gpa, s->size)) {
        error_setg(errp, "section %u (%s) of its metadata asks for 0x%" PRIx64
                   " bytes at gpa 0x%" PRIx64 ", which are not in one piece "
                   "of RAM; let no NUMA node end there", s->number, s->name,
                   s->size, s->gpa);
        return false;
    }
    return true;
}

static int by_gpa(const void *a, const void *b)
{
    const Section *left = a, *right = b;

    return left->gpa < right->gpa ? -1 : left->gpa > right->gpa;
}

/* Sorts them, too. @sections: NULL if there are none */
static bool check_overlaps(Section *sections, size_t nr, Error **errp)
{
    size_t i;

    if (nr) {
        qsort(sections, nr, sizeof(*sections), by_gpa);
    }
    for (i = 1; i < nr; i++) {
        const Section *last = &sections[i - 1], *this = &sections[i];

        if (this->gpa < last->gpa + last->size) {
            error_setg(errp, "sections %u (%s) and %u (%s) of its metadata "
                       "overlap at gpa 0x%" PRIx64 "; no page can be launched "
                       "twice", last->number, last->name, this->number,
                       this->name, this->gpa);
            return false;
        }
    }
    return true;
}

void guest_memfd_forget_table(uint8_t **end, int *size)
{
    if (*end) {
        g_free(*end - *size);
    }
    *end = NULL;
    *size = 0;
}

/* --- SEV-SNP --- */

static const char *asev_name(uint32_t type)
{
    switch (type) {
    case ASEV_SEC_MEM:
        return "SEC_MEM";
    case ASEV_SECRETS:
        return "SECRETS";
    case ASEV_CPUID:
        return "CPUID";
    case ASEV_SVSM_CAA:
        return "SVSM_CAA";
    case ASEV_KERNEL_HASHES:
        return "KERNEL_HASHES";
    default:
        return "of unknown type";
    }
}

/* QEMU writes hashes of a kernel there, in the section's first page. */
static bool check_hashes(const Image *image, const Section *s, Error **errp)
{
    uint32_t area[2];           /* address, size */

    if (!read_entry(image, &sev_hashes_guid, "hashes of a kernel "
                    "(kernel-hashes=on)", area, ARRAY_SIZE(area), errp)) {
        return false;
    }
    if (!area[0] || area[1] < HASHES_SIZE) {
        error_setg(errp, "its area for hashes of a kernel has 0x%x bytes at "
                   "gpa 0x%x; they need 0x%x", area[1], area[0], HASHES_SIZE);
        return false;
    }
    if (area[0] < s->gpa || area[0] > s->gpa + PAGE - HASHES_SIZE) {
        error_setg(errp, "its area for hashes of a kernel, at gpa 0x%x, is "
                   "not in the first page of section %u (%s) at gpa 0x%"
                   PRIx64, area[0], s->number, s->name, s->gpa);
        return false;
    }
    return true;
}

static bool check_reset_block(const Image *image, Error **errp)
{
    uint32_t start;

    if (!read_entry(image, &sev_reset_guid, "the SEV-ES reset block", &start,
                    1, errp)) {
        return false;
    }
    if (!start) {
        error_setg(errp, "its SEV-ES reset block gives 0 as the address where "
                   "vCPUs start");
        return false;
    }
    return true;
}

bool guest_memfd_check_snp_tables(const uint8_t *data, size_t size,
                                  uint64_t ram,
                                  GuestMemfdIsOnePiece *is_one_piece,
                                  bool kernel_hashes, Error **errp)
{
    g_autofree Section *sections = NULL;
    bool has_hashes = false;
    uint32_t i;
    Metadata metadata;
    size_t offset;
    Image image;

    if (!read_image(&image, data, size, ram, is_one_piece, errp) ||
        !check_reset_block(&image, errp) ||
        !read_metadata(&image, &asev_guid, "ASEV", sizeof(AsevSection),
                       &metadata, &offset, errp)) {
        return false;
    }
    if (metadata.length > offset) {
        error_setg(errp, "its ASEV metadata of 0x%x bytes is at offset 0x%zx "
                   "of the file, and QEMU does not look so near to the start",
                   metadata.length, offset);
        return false;
    }

    sections = g_new0(Section, metadata.sections);
    for (i = 0; i < metadata.sections; i++) {
        Section *s = &sections[i];
        AsevSection in;

        memcpy(&in, data + offset + sizeof(metadata) + i * sizeof(in),
               sizeof(in));
        s->number = i;
        s->name = asev_name(le32_to_cpu(in.type));
        s->gpa = le32_to_cpu(in.gpa);
        s->size = le32_to_cpu(in.size);
        if (!check_section(&image, s, false, errp)) {
            return false;
        }
        if (kernel_hashes && le32_to_cpu(in.type) == ASEV_KERNEL_HASHES) {
            has_hashes = true;
            if (!check_hashes(&image, s, errp)) {
                return false;
            }
        }
    }
    if (kernel_hashes && !has_hashes) {
        /* The guest would run the kernel, and its owner would not know. */
        error_setg(errp, "its metadata has no section for hashes of a kernel, "
                   "so they would not be measured; use firmware that has one, "
                   "such as Debian's OVMF.amdsev.fd, or kernel-hashes=off");
        return false;
    }
    return check_overlaps(sections, metadata.sections, errp);
}

/* --- TDX --- */

static const char *const tdvf_names[TDVF_TYPES] = {
    [TDVF_BFV] = "BFV",
    [TDVF_CFV] = "CFV",
    [TDVF_TD_HOB] = "TD_HOB",
    [TDVF_TEMP_MEM] = "TEMP_MEM",
};

/* Does it say where in the image its contents are? */
static bool check_contents(const Image *image, const Section *s,
                           const TdvfSection *tdvf, Error **errp)
{
    if (!tdvf->data_size || tdvf->data_size > s->size ||
        !QEMU_IS_ALIGNED(tdvf->data_offset, PAGE) ||
        s->size > image->size || tdvf->data_offset > image->size - s->size) {
        error_setg(errp, "section %u (%s) of its metadata wants 0x%" PRIx64
                   " bytes of the file at offset 0x%x, 0x%x of them with "
                   "contents; the file has 0x%zx bytes, the offset has to be "
                   "a whole page, and there have to be contents", s->number,
                   s->name, s->size, tdvf->data_offset, tdvf->data_size,
                   image->size);
        return false;
    }
    if (tdvf->type == TDVF_BFV &&
        buffer_is_zero(image->data + tdvf->data_offset, s->size)) {
        error_setg(errp, "section %u (%s) of its metadata, 0x%" PRIx64
                   " bytes of the file at offset 0x%x, has only zeros, where "
                   "the guest's code should be", s->number, s->name, s->size,
                   tdvf->data_offset);
        return false;
    }
    return true;
}

static bool check_tdvf_section(const Image *image, const Section *s,
                               const TdvfSection *tdvf, Error **errp)
{
    bool has_contents = tdvf->type == TDVF_BFV || tdvf->type == TDVF_CFV;

    if (!check_section(image, s, has_contents, errp)) {
        return false;
    }
    if (has_contents) {
        return check_contents(image, s, tdvf, errp);
    }
    if (tdvf->data_size) {
        error_setg(errp, "section %u (%s) of its metadata has 0x%x bytes in "
                   "the file, and should have none", s->number, s->name,
                   tdvf->data_size);
        return false;
    }
    if (tdvf->type == TDVF_TD_HOB && tdvf->attributes & TDVF_MR_EXTEND) {
        error_setg(errp, "section %u (%s) of its metadata is to be measured, "
                   "but its contents depend on the guest's memory, so nobody "
                   "could verify the measurement", s->number, s->name);
        return false;
    }
    return true;
}

/*
 * @hobs: how many sections there are for it, one of @size bytes
 * @in_ram: how many sections that QEMU finds in RAM
 */
static bool check_hob(uint32_t hobs, uint64_t size, uint32_t in_ram,
                      Error **errp)
{
    uint64_t needs = HOB_ENDS + HOB_AREA * (2 + 2 * (uint64_t)in_ram);

    if (hobs != 1) {
        error_setg(errp, "its metadata has %u sections TD_HOB, and there has "
                   "to be one", hobs);
        return false;
    }
    if (size < needs) {
        error_setg(errp, "its section TD_HOB has 0x%" PRIx64 " bytes, and may "
                   "need 0x%" PRIx64 " to describe RAM with %u sections in it",
                   size, needs, in_ram);
        return false;
    }
    return true;
}

bool guest_memfd_check_tdx_tables(const uint8_t *data, size_t size,
                                  uint64_t ram,
                                  GuestMemfdIsOnePiece *is_one_piece,
                                  Error **errp)
{
    g_autofree Section *sections = NULL;
    uint32_t i, in_ram = 0, hobs = 0;
    uint64_t hob_size = 0;
    Metadata metadata;
    size_t offset;
    Image image;

    if (!read_image(&image, data, size, ram, is_one_piece, errp) ||
        !read_metadata(&image, &tdvf_guid, "TDVF", sizeof(TdvfSection),
                       &metadata, &offset, errp)) {
        return false;
    }
    if (metadata.sections < 2 || metadata.length != sizeof(metadata) +
        metadata.sections * sizeof(TdvfSection)) {
        error_setg(errp, "its TDVF metadata has %u sections in a length of "
                   "0x%x bytes; there have to be two or more, and nothing "
                   "else in it", metadata.sections, metadata.length);
        return false;
    }

    sections = g_new0(Section, metadata.sections);
    for (i = 0; i < metadata.sections; i++) {
        Section *s = &sections[i];
        TdvfSection in;

        memcpy(&in, data + offset + sizeof(metadata) + i * sizeof(in),
               sizeof(in));
        le32_to_cpus(&in.data_offset);
        le32_to_cpus(&in.data_size);
        le32_to_cpus(&in.type);
        le32_to_cpus(&in.attributes);
        if (in.type >= TDVF_TYPES) {
            error_setg(errp, "section %u of its metadata has type %u, which "
                       "QEMU does not know", i, in.type);
            return false;
        }
        s->number = i;
        s->name = tdvf_names[in.type];
        s->gpa = le64_to_cpu(in.gpa);
        s->size = le64_to_cpu(in.size);
        if (!check_tdvf_section(&image, s, &in, errp)) {
            return false;
        }
        in_ram += in.type == TDVF_TD_HOB || in.type == TDVF_TEMP_MEM;
        if (in.type == TDVF_TD_HOB) {
            hob_size = s->size;
            hobs++;
        }
    }
    return check_hob(hobs, hob_size, in_ram, errp) &&
           check_overlaps(sections, metadata.sections, errp);
}
