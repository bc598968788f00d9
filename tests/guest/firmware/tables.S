/*
 * Tables that an emulator reads before it launches a confidential guest
 *
 * A table of entries that end with their length and a GUID, to be read
 * backwards from 32 bytes below 4 GiB; and the metadata that two of them
 * point to, by its distance from the end of the image.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "memory.h"

/* Of a section of SEV metadata */
#define SEC_MEM         1
#define SECRETS         2
#define CPUID           3
#define KERNEL_HASHES   0x10
/* Of a section of TDX metadata */
#define BFV             0
#define TD_HOB          2
#define TEMP_MEM        3
#define MR_EXTEND       1

        .macro  sev_section type, from, to
        .long   \from, \to - \from, \type
        .endm

        .macro  tdx_section type, from, to, data_size, attributes
        .long   0, \data_size           /* from the start of the image */
        .quad   \from, \to - \from
        .long   \type, \attributes
        .endm

        /* The last eight bytes are a big-endian number. */
        .macro  guid a, b, c, d
        .long   \a
        .short  \b, \c
        .irp    shift, 56, 48, 40, 32, 24, 16, 8, 0
        .byte   (\d >> \shift) & 0xff
        .endr
        .endm

        .macro  entry_end start
        .short  . - \start + 18
        .endm

        .section .metadata, "a"
        .align  16
        .globl  sev_metadata, tdx_metadata
sev_metadata:
        .ascii  "ASEV"
        .long   sev_metadata_end - sev_metadata
        .long   1                       /* version */
        .long   (sev_metadata_end - sev_sections) / 12
sev_sections:
        sev_section SECRETS, SNP_SECRETS, SNP_CPUID
        sev_section CPUID, SNP_CPUID, SEV_HASHES
        sev_section KERNEL_HASHES, SEV_HASHES, TDX_HOB
        sev_section SEC_MEM, TDX_HOB, USED_END
sev_metadata_end:

        .align  16
tdx_metadata:
        .ascii  "TDVF"
        .long   tdx_metadata_end - tdx_metadata
        .long   1                       /* version */
        .long   (tdx_metadata_end - tdx_sections) / 32
tdx_sections:
        tdx_section BFV, IMAGE, IMAGE + IMAGE_SIZE, IMAGE_SIZE, MR_EXTEND
        tdx_section TD_HOB, TDX_HOB, TRAMPOLINE, 0, 0
        tdx_section TEMP_MEM, TRAMPOLINE, USED_END, 0, 0
tdx_metadata_end:

        .section .guids, "a"
guids:
1:      .long   tdx_metadata_distance
        entry_end 1b
        guid    0xe47a6535, 0x984a, 0x4798, 0x865e4685a7bf8ec2
1:      .long   sev_metadata_distance
        entry_end 1b
        guid    0xdc886566, 0x984a, 0x4798, 0xa75e5585a7bf67cc
1:      .long   SEV_HASHES, TDX_HOB - SEV_HASHES
        entry_end 1b
        guid    0x7255371f, 0x3a3b, 0x4b04, 0x927b1da6efa8d454
1:      .long   start16                 /* reset vector of the others (-ES) */
        entry_end 1b
        guid    0x00f771de, 0x1a7e, 0x4fcb, 0x890e68c77e2fb44e
        entry_end guids
        guid    0x96b582de, 0x1fb2, 0x45f7, 0xbaeaa366c55a082d
