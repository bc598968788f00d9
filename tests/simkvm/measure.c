/*
 * simkvm: launch digests
 *
 * SNP: a chain of SHA-384 over one PAGE_INFO record a page (SEV-SNP ABI
 * specification, SNP_LAUNCH_UPDATE).  TDX: MRTD, one SHA-384 over the records
 * of TDH.MEM.PAGE.ADD and TDH.MR.EXTEND (TDX module base architecture
 * specification, "MRTD").
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "simkvm.h"

#define TDX_CHUNK 256                   /* bytes that one MR.EXTEND measures */

typedef struct SnpPageInfo {
    uint8_t digest[SIM_DIGEST];         /* so far */
    uint8_t contents[SIM_DIGEST];       /* SHA-384 of the page, or zeros */
    uint16_t length;                    /* of this record */
    uint8_t page_type;
    uint8_t imi;                        /* bit 0; 0: no migration image */
    uint8_t permissions[3];             /* VMPL3, VMPL2, VMPL1 */
    uint8_t reserved;
    uint64_t gpa;
} SnpPageInfo;

G_STATIC_ASSERT(sizeof(SnpPageInfo) == 0x70);

/* PAGE.ADD and MR.EXTEND; the contents after the latter are no part of it. */
typedef struct TdxRecord {
    char name[16];
    uint64_t gpa;
    uint8_t zeros[104];
} TdxRecord;

G_STATIC_ASSERT(sizeof(TdxRecord) == 128);

static void sha384(const void *data, size_t len, uint8_t digest[SIM_DIGEST])
{
    GChecksum *sum = g_checksum_new(G_CHECKSUM_SHA384);
    gsize size = SIM_DIGEST;

    g_checksum_update(sum, data, len);
    g_checksum_get_digest(sum, digest, &size);
    g_checksum_free(sum);
}

void sim_measure_snp(uint8_t digest[SIM_DIGEST], uint8_t type, uint64_t gpa,
                     const uint8_t *page)
{
    SnpPageInfo info = {
        .length = GUINT16_TO_LE(sizeof(info)),
        .page_type = type,
        .gpa = GUINT64_TO_LE(gpa),
    };

    memcpy(info.digest, digest, SIM_DIGEST);
    if (page) {
        sha384(page, SIM_PAGE, info.contents);
    }
    sha384(&info, sizeof(info), digest);
}

static void tdx_record(GChecksum *mrtd, const char *name, uint64_t gpa)
{
    TdxRecord record = { .gpa = GUINT64_TO_LE(gpa) };

    memcpy(record.name, name, strlen(name));
    g_checksum_update(mrtd, (const guchar *)&record, sizeof(record));
}

void sim_measure_tdx_add(GChecksum *mrtd, uint64_t gpa)
{
    tdx_record(mrtd, "MEM.PAGE.ADD", gpa);
}

void sim_measure_tdx_extend(GChecksum *mrtd, uint64_t gpa,
                            const uint8_t *page)
{
    uint64_t at;

    for (at = 0; at < SIM_PAGE; at += TDX_CHUNK) {
        tdx_record(mrtd, "MR.EXTEND", gpa + at);
        g_checksum_update(mrtd, page + at, TDX_CHUNK);
    }
}

void sim_measure_tdx_digest(const GChecksum *mrtd, uint8_t digest[SIM_DIGEST])
{
    /* A checksum is closed when its digest is read, so read that of a copy. */
    GChecksum *copy = g_checksum_copy(mrtd);
    gsize size = SIM_DIGEST;

    g_checksum_get_digest(copy, digest, &size);
    g_checksum_free(copy);
}

void sim_digest_hex(const uint8_t digest[SIM_DIGEST],
                    char hex[2 * SIM_DIGEST + 1])
{
    size_t i;

    for (i = 0; i < SIM_DIGEST; i++) {
        g_snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    }
}

void sim_json_hex(GString *json, const char *name, const void *data,
                  size_t len)
{
    const uint8_t *byte = data;

    g_string_append_printf(json, "%s\"%s\": \"", json->len ? ", " : "", name);
    while (len--) {
        g_string_append_printf(json, "%02x", *byte++);
    }
    g_string_append_c(json, '"');
}
