/*
 * TDX: launch in place, and MRTD
 *
 * MRTD is one SHA-384: of a record for every page that is added, and for the
 * contents of measured pages of a record and the bytes of every chunk (TDX
 * module base architecture specification).
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "crypto/hash.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/mmap-alloc.h"
#include "qemu/units.h"
#include "kvm/tdx.h"
#include "qemu/base64.h"
#include "system/memory.h"
#include "system/ramblock.h"
#include "gmem/system/guest-memfd-internal.h"
#include "gmem/target/i386/guest-memfd-launch.h"

#define TDX_PAGE_SIZE (4 * KiB)
#define TDX_CHUNK_SIZE 256

typedef struct TdxRecord {
    char name[16];
    uint64_t gpa;
    uint8_t zeros[104];
} QEMU_PACKED TdxRecord;

QEMU_BUILD_BUG_ON(sizeof(TdxRecord) != 128);

static QCryptoHash *tdx_mrtd;

static const char *section_name(const TdxFirmwareEntry *entry)
{
    static const char *const names[] = {
        [TDVF_SECTION_TYPE_BFV] = "bfv",
        [TDVF_SECTION_TYPE_CFV] = "cfv",
        [TDVF_SECTION_TYPE_TD_HOB] = "td-hob",
        [TDVF_SECTION_TYPE_TEMP_MEM] = "temp-mem",
    };

    assert(entry->type < ARRAY_SIZE(names));
    return names[entry->type];
}

/*
 * The guest may find a section elsewhere than the file's end at 4 GiB has it,
 * and there the image has another.  So copies are made from a copy.
 */
static uint8_t *image_copy;

static const void *image_contents(const TdxGuest *tdx,
                                  const TdxFirmwareEntry *entry)
{
    if (!image_copy) {
        image_copy = g_memdup2(tdx->tdvf.mem_ptr,
                               memory_region_size(tdx->tdvf_mr));
    }
    return image_copy + entry->data_offset;
}

void *guest_memfd_tdx_contents(TdxGuest *tdx, const TdxFirmwareEntry *entry)
{
    void *contents = tdx->tdvf.mem_ptr + entry->data_offset;
    void *host;

    if (!guest_memfd_in_place()) {
        return contents;
    }
    host = guest_memfd_launch_host(entry->address, entry->size, &error_fatal);
    if (host != contents || image_copy) {
        memcpy(host, image_contents(tdx, entry), entry->size);
    }
    return host;
}

void *guest_memfd_tdx_section(TdxGuest *tdx, const TdxFirmwareEntry *entry)
{
    void *host;

    if (!guest_memfd_in_place()) {
        return qemu_ram_mmap(-1, entry->size, qemu_real_host_page_size(), 0,
                             0);
    }
    host = guest_memfd_launch_host(entry->address, entry->size, &error_fatal);
    memset(host, 0, entry->size);
    return host;
}

void guest_memfd_tdx_section_free(const TdxFirmwareEntry *entry)
{
    if (!guest_memfd_in_place()) {
        qemu_ram_munmap(-1, entry->mem_ptr, entry->size);
    }
}

static void measure_record(const char *name, hwaddr gpa, const void *chunk)
{
    TdxRecord record = { .gpa = cpu_to_le64(gpa) };
    struct iovec iov[] = {
        { &record, sizeof(record) },
        { (void *)chunk, TDX_CHUNK_SIZE },
    };

    memcpy(record.name, name, strlen(name));
    qcrypto_hash_updatev(tdx_mrtd, iov, chunk ? 2 : 1, &error_fatal);
}

/* @contents: NULL if they do not count */
static void measure(hwaddr gpa, hwaddr size, const uint8_t *contents)
{
    hwaddr page, at;

    if (QSIMPLEQ_EMPTY(guest_memfd_launch())) {
        qcrypto_hash_free(tdx_mrtd);
        tdx_mrtd = qcrypto_hash_new(QCRYPTO_HASH_ALGO_SHA384, &error_fatal);
    }
    for (page = 0; page < size; page += TDX_PAGE_SIZE) {
        measure_record("MEM.PAGE.ADD", gpa + page, NULL);
        for (at = page; contents && at < page + TDX_PAGE_SIZE;
             at += TDX_CHUNK_SIZE) {
            measure_record("MR.EXTEND", gpa + at, contents + at);
        }
    }
}

/*
 * A volume with code has a header, and QEMU writes the HOB.  Temporary memory
 * is zeros, and a configuration volume is as its vendor has left it.
 */
static bool needs_contents(const TdxFirmwareEntry *entry)
{
    return entry->type == TDVF_SECTION_TYPE_BFV ||
           entry->type == TDVF_SECTION_TYPE_TD_HOB;
}

bool guest_memfd_tdx_launch_range(const TdxFirmwareEntry *entry,
                                  struct kvm_tdx_init_mem_region *region)
{
    bool measured = entry->attributes & TDVF_SECTION_ATTRIBUTES_MR_EXTEND;
    const void *contents = measured ? entry->mem_ptr : NULL;
    const char *name = section_name(entry);
    Error *err = NULL;

    if (!guest_memfd_launch_ok()) {
        return false;
    }
    if (!guest_memfd_in_place()) {
        measure(entry->address, entry->size, contents);
        guest_memfd_launch_note(entry->address, entry->size, name, contents,
                                &error_fatal);
        return true;
    }
    /* A range that cannot be launched may not be readable either. */
    guest_memfd_launch_host(entry->address, entry->size, &error_fatal);
    if (needs_contents(entry) &&
        !guest_memfd_launch_check_contents(entry->address, entry->size, name,
                                           &err)) {
        guest_memfd_launch_failed(err);
        return false;
    }
    measure(entry->address, entry->size, contents);
    if (!guest_memfd_launch_range(entry->address, entry->size, name, true,
                                  measured, &err)) {
        guest_memfd_launch_failed(err);
        return false;
    }
    region->source_addr = 0;
    return true;
}

/*
 * Pages of the image that are not launched become private with the rest of
 * RAM.  Nobody will see their contents, so none are kept.
 */
static void clear_rest_of_image(const TdxGuest *tdx)
{
    hwaddr size = memory_region_size(tdx->tdvf_mr);
    hwaddr start = 4 * GiB - size, at = start;

    while (at < start + size) {
        const GuestMemfdLaunchRange *r;
        hwaddr next = start + size;

        /* Where the image goes on behind what is launched at @at, or until */
        QSIMPLEQ_FOREACH(r, guest_memfd_launch(), next) {
            if (r->gpa <= at && at < r->gpa + r->size) {
                break;
            }
            if (r->gpa > at) {
                next = MIN(next, r->gpa);
            }
        }
        if (r) {
            at = r->gpa + r->size;
            continue;
        }
        memset((uint8_t *)tdx->tdvf.mem_ptr + (at - start), 0, next - at);
        at = next;
    }
}

/* Hexadecimal, of SHA-384 in base64; zeros if the user gave none. */
static char *digest_of_user(const char *base64)
{
    uint8_t digest[GUEST_MEMFD_DIGEST] = {};

    if (base64) {
        g_autofree uint8_t *data = NULL;
        size_t size;

        /* QEMU has refused others. */
        data = qbase64_decode(base64, -1, &size, &error_abort);
        assert(size == sizeof(digest));
        memcpy(digest, data, size);
    }
    return guest_memfd_launch_hex(digest);
}

bool guest_memfd_tdx_launch_finish(const TdxGuest *tdx, RAMBlock *image)
{
    uint8_t digest[GUEST_MEMFD_DIGEST];
    uint8_t *result = digest;
    size_t size = sizeof(digest);
    LaunchMeasurement *m;
    Error *err = NULL;

    g_clear_pointer(&image_copy, g_free);
    if (!guest_memfd_launch_ok()) {
        return false;
    }
    if (!guest_memfd_in_place()) {
        /* It was copied, and is not needed any more. */
        ram_block_discard_shared_range(image, 0, image->max_length);
    } else {
        clear_rest_of_image(tdx);
        if (!guest_memfd_launch_finish(&err)) {
            guest_memfd_launch_failed(err);
            return false;
        }
    }
    qcrypto_hash_finalize_bytes(tdx_mrtd, &result, &size, &error_fatal);
    qcrypto_hash_free(tdx_mrtd);
    tdx_mrtd = NULL;

    m = g_new0(LaunchMeasurement, 1);
    m->type = LAUNCH_MEASUREMENT_TYPE_TDX;
    m->u.tdx.mrtd = guest_memfd_launch_hex(digest);
    m->u.tdx.mrconfigid = digest_of_user(tdx->mrconfigid);
    m->u.tdx.mrowner = digest_of_user(tdx->mrowner);
    m->u.tdx.mrownerconfig = digest_of_user(tdx->mrownerconfig);
    guest_memfd_launch_measured(m);
    return true;
}
