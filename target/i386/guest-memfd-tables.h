/*
 * Tables in the firmware of confidential guests
 *
 * An image of OVMF's kind ends with a table of entries, which GUIDs name.  One
 * of them leads to the list of sections: memory that the launch populates.
 * QEMU trusts most of what stands there; here it is checked before.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef I386_GUEST_MEMFD_TABLES_H
#define I386_GUEST_MEMFD_TABLES_H

/*
 * Bytes of the largest image, in QEMU's units of 64 KiB: it ends at 4 GiB, and
 * from 0xfee00000 on the local APIC hides 1 MiB, as messages of MSI go there.
 */
#define GUEST_MEMFD_FIRMWARE_UNIT 0x10000
#define GUEST_MEMFD_FIRMWARE_MAX 0x1100000

/**
 * GuestMemfdIsOnePiece: is RAM there in one block?
 * @gpa, @size: bytes, below the end of RAM
 */
typedef bool GuestMemfdIsOnePiece(uint64_t gpa, uint64_t size);

/**
 * guest_memfd_check_snp_tables: can an SEV-SNP guest be launched with these?
 * @image: the firmware, as it is in its file
 * @size: of it in bytes
 * @ram: where the guest's RAM below 4 GiB ends, a gpa
 * @is_one_piece: asked for each section
 * @kernel_hashes: hashes of a kernel are to be measured
 *
 * Pages of the image, the metadata "ASEV" (OVMF's OvmfSevMetadata) and the
 * SEV-ES reset block.
 * Returns: false and an error if not.  Needs no lock.
 */
bool guest_memfd_check_snp_tables(const uint8_t *image, size_t size,
                                  uint64_t ram,
                                  GuestMemfdIsOnePiece *is_one_piece,
                                  bool kernel_hashes, Error **errp);

/**
 * guest_memfd_check_tdx_tables: can a TDX guest be launched with these?
 *
 * As above, for the metadata "TDVF" (TDX Virtual Firmware Design Guide).
 */
bool guest_memfd_check_tdx_tables(const uint8_t *image, size_t size,
                                  uint64_t ram,
                                  GuestMemfdIsOnePiece *is_one_piece,
                                  Error **errp);

#endif
