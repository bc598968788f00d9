/*
 * Firmware and kernel of confidential guests, as files
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "hw/i386/guest-memfd-firmware.h"
#include "hw/i386/x86.h"
#include "kvm/tdx.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/error-report.h"
#include "qemu/units.h"
#include "sev.h"
#include "system/address-spaces.h"
#include "gmem/target/i386/guest-memfd-tables.h"

static bool has_tables;
static char *firmware;          /* path of what was loaded */

/*
 * Says why @path is no file with contents, NULL if it is one.  To be freed.
 * @size: bytes, -1 if that is not known
 */
static char *what_is_wrong(const char *path, int64_t *size)
{
    struct stat st;

    *size = -1;
    if (stat(path, &st) < 0 || access(path, R_OK) < 0) {
        return g_strdup(strerror(errno));
    }
    if (!S_ISREG(st.st_mode)) {
        return g_strdup(S_ISDIR(st.st_mode) ? "it is a directory"
                                            : "it is no regular file");
    }
    *size = st.st_size;
    if (!st.st_size) {
        return g_strdup("it is empty");
    }
    if (st.st_size > INT_MAX) {
        return g_strdup_printf("it has %" PRId64 " bytes, and QEMU takes 2 "
                               "GiB less one at most", *size);
    }
    return NULL;
}

void guest_memfd_check_bios(const MachineState *ms, const char *name,
                            const char *file)
{
    g_autofree char *wrong = NULL;
    int64_t size;

    if (!ms->cgs) {
        return;
    }
    if (!file) {
        error_report("firmware '%s': there is no such file that can be read, "
                     "nor one of that name where QEMU keeps its firmware (-L)",
                     name);
        exit(EXIT_FAILURE);
    }
    wrong = what_is_wrong(file, &size);
    if (wrong) {
        error_report("firmware '%s': it cannot be used: %s", file, wrong);
        exit(EXIT_FAILURE);
    }
    if (size % GUEST_MEMFD_FIRMWARE_UNIT) {
        error_report("firmware '%s': it has 0x%" PRIx64 " bytes, and QEMU "
                     "takes multiples of 0x%x; -bios needs the whole image, "
                     "code and variables in one file", file, size,
                     GUEST_MEMFD_FIRMWARE_UNIT);
        exit(EXIT_FAILURE);
    }
    g_free(firmware);
    firmware = g_strdup(file);
}

void guest_memfd_check_pflash(const MachineState *ms)
{
    if (ms->cgs) {
        error_report("firmware of a %s cannot be in a flash device, as KVM "
                     "has no read-only memory for such guests; give the image "
                     "by -bios instead of pflash",
                     object_get_typename(OBJECT(ms->cgs)));
        exit(EXIT_FAILURE);
    }
}

/* Linux boot protocol: setup in sectors of 512 bytes, behind a boot sector. */
#define SECTOR 512
#define SETUP_SECTORS 0x1f1
#define SETUP_SECTORS_IF_0 4
#define SETUP_MAGIC 0x202

/* Multiboot specification: its header is in the first 8 KiB. */
#define MULTIBOOT_MAGIC 0x1badb002
#define KERNEL_HEAD (8 * KiB)

/* Multiboot kernels, and those that start by PVH */
static bool has_no_setup(const uint8_t *head, size_t size)
{
    size_t at;

    if (!memcmp(head + SETUP_MAGIC, "HdrS", 4)) {
        return false;
    }
    for (at = 0; at + 4 <= size; at += 4) {
        if (ldl_le_p(head + at) == MULTIBOOT_MAGIC) {
            return true;
        }
    }
    return !memcmp(head, "\177ELF", 4);
}

/*
 * Says why QEMU would not find a kernel behind its setup, NULL if it does.  To
 * be freed.
 */
static char *what_is_wrong_with_setup(const char *kernel, int64_t size)
{
    g_autofree uint8_t *head = g_malloc0(KERNEL_HEAD);
    FILE *f = fopen(kernel, "rb");
    int64_t setup;
    size_t found;

    if (!f) {
        return g_strdup(strerror(errno));
    }
    found = fread(head, 1, KERNEL_HEAD, f);
    fclose(f);
    if (found < 2 * SECTOR) {
        return g_strdup_printf("it has %zu bytes, too few for any kernel",
                               found);
    }
    setup = ((head[SETUP_SECTORS] ?: SETUP_SECTORS_IF_0) + 1) * SECTOR;
    if (setup <= size || has_no_setup(head, found)) {
        return NULL;
    }
    return g_strdup_printf("it has %" PRId64 " bytes, and says in its header "
                           "that %" PRId64 " are its setup", size, setup);
}

void guest_memfd_check_kernel(const MachineState *ms)
{
    g_autofree char *wrong = NULL;
    int64_t size;

    if (!ms->cgs) {
        return;
    }
    wrong = what_is_wrong(ms->kernel_filename, &size) ?:
            what_is_wrong_with_setup(ms->kernel_filename, size);
    if (wrong) {
        error_report("kernel '%s': it cannot be used: %s", ms->kernel_filename,
                     wrong);
        exit(EXIT_FAILURE);
    }
    if (ms->initrd_filename) {
        wrong = what_is_wrong(ms->initrd_filename, &size);
        /* An empty one is as good as none. */
        if (wrong && size) {
            error_report("initrd '%s': it cannot be used: %s",
                         ms->initrd_filename, wrong);
            exit(EXIT_FAILURE);
        }
    }
}

/* Can there be hashes of a kernel? */
static bool check_hashes(const MachineState *ms, Error **errp)
{
    if (!ms->kernel_filename) {
        error_setg(errp, "kernel-hashes=on asks for hashes of a kernel, but "
                   "there is no -kernel");
        return false;
    }
    if (ms->dtb) {
        error_setg(errp, "-dtb cannot be used with kernel-hashes=on: QEMU "
                   "adds it to the kernel, so the hash would not be that of "
                   "the kernel's file");
        return false;
    }
    return true;
}

/* GuestMemfdIsOnePiece */
static bool is_one_piece(uint64_t gpa, uint64_t size)
{
    MemoryRegionSection section = memory_region_find(get_system_memory(), gpa,
                                                     size);
    bool is_one = section.mr && memory_region_is_ram(section.mr) &&
                  section.offset_within_address_space == gpa &&
                  int128_eq(section.size, int128_make64(size));

    if (section.mr) {
        memory_region_unref(section.mr);
    }
    return is_one;
}

/* For SEV-SNP and TDX guests.  RAM below 4 GiB has its place by now. */
static bool check_image(const MachineState *ms, const void *image, size_t size,
                        Error **errp)
{
    uint64_t ram = X86_MACHINE(ms)->below_4g_mem_size;
    bool hashes, ok = true;

    if (is_tdx_vm()) {
        ok = guest_memfd_check_tdx_tables(image, size, ram, is_one_piece,
                                          errp);
    } else if (sev_snp_enabled()) {
        hashes = object_property_get_bool(OBJECT(ms->cgs), "kernel-hashes",
                                          &error_abort);
        if (hashes && !check_hashes(ms, errp)) {
            return false;
        }
        ok = guest_memfd_check_snp_tables(image, size, ram, is_one_piece,
                                          hashes, errp);
    }
    if (!ok) {
        error_prepend(errp, "firmware '%s': ", firmware);
    }
    return ok;
}

void guest_memfd_check_tables(const void *image, int size)
{
    Error *err = NULL;

    if (!check_image(current_machine, image, size, &err)) {
        error_report_err(err);
        exit(EXIT_FAILURE);
    }
    has_tables = true;
}

bool guest_memfd_has_tables(Error **errp)
{
    if (!has_tables) {
        error_setg(errp, "kernel-hashes=on works where QEMU reads firmware "
                   "(-bios) before it reads the kernel: with machine types "
                   "pc and q35, but not with %s%s",
                   MACHINE_GET_CLASS(current_machine)->name,
                   X86_MACHINE(current_machine)->igvm ? " and an IGVM file"
                   : "");
    }
    return has_tables;
}

/* Reads the file that was loaded, if it can be again.  Else NULL. */
static char *read_again(uint64_t wanted, Error **errp)
{
    g_autofree char *wrong = NULL;
    g_autofree char *image = NULL;
    g_autoptr(GError) gerr = NULL;
    int64_t size;
    gsize found;

    wrong = what_is_wrong(firmware, &size);
    if (wrong || !g_file_get_contents(firmware, &image, &found, &gerr)) {
        error_setg(errp, "its firmware '%s' cannot be read any more: %s; put "
                   "it back", firmware, wrong ?: gerr->message);
        return NULL;
    }
    if (found != wanted) {
        error_setg(errp, "its firmware '%s' has 0x%zx bytes now, and had 0x%"
                   PRIx64 " when QEMU started; put the old one back",
                   firmware, found, wanted);
        return NULL;
    }
    return g_steal_pointer(&image);
}

int guest_memfd_reload_firmware(MachineState *ms)
{
    X86MachineState *x86ms = (X86MachineState *)
        object_dynamic_cast(OBJECT(ms), TYPE_X86_MACHINE);
    uint64_t size = x86ms ? memory_region_size(&x86ms->bios) : 0;
    g_autofree char *image = NULL;
    Error *err = NULL;

    if (!ms->cgs || !size || x86ms->igvm) {
        return 0;
    }
    image = read_again(size, &err);
    if (!image || !check_image(ms, image, size, &err)) {
        error_prepend(&err, "the guest cannot be reset, because of its "
                      "firmware, which has changed; mend it and reset again: ");
        error_report_err(err);
        return -EINVAL;
    }
    return 0;
}
