/*
 * Firmware and kernel of confidential guests, as files
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "hw/core/loader.h"
#include "hw/i386/guest-memfd-firmware.h"
#include "hw/i386/x86.h"
#include "kvm/tdx.h"
#include "qapi/error.h"
#include "qemu/datadir.h"
#include "qemu/error-report.h"
#include "sev.h"
#include "system/address-spaces.h"
#include "gmem/target/i386/guest-memfd-tables.h"

static bool has_tables;

static const char *firmware_name(const MachineState *ms)
{
    return ms->firmware ?: "bios.bin";
}

/* Says why @path is no file with contents, NULL if it is.  To be freed. */
static char *what_is_wrong(const char *path)
{
    g_autofree char *contents = NULL;
    struct stat st;
    FILE *f;
    int err = 0;

    if (stat(path, &st) < 0) {
        return g_strdup(strerror(errno));
    }
    if (S_ISDIR(st.st_mode)) {
        return g_strdup("it is a directory");
    }
    f = fopen(path, "rb");
    if (!f) {
        return g_strdup(strerror(errno));
    }
    errno = 0;
    if (fgetc(f) == EOF) {
        err = errno;
        fclose(f);
        return g_strdup(err ? strerror(err) : "it is empty");
    }
    fclose(f);
    if (st.st_size > INT_MAX) {
        return g_strdup_printf("it has %" PRIu64 " bytes, and QEMU takes 2 "
                               "GiB less one at most", (uint64_t)st.st_size);
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
    wrong = what_is_wrong(file);
    if (wrong) {
        error_report("firmware '%s': it cannot be used: %s", file, wrong);
        exit(EXIT_FAILURE);
    }
    size = get_image_size(file, NULL);
    if (size <= 0 || size % GUEST_MEMFD_FIRMWARE_UNIT) {
        error_report("firmware '%s': it has 0x%" PRIx64 " bytes, and QEMU "
                     "takes multiples of 0x%x; -bios needs the whole image, "
                     "code and variables in one file", file, (uint64_t)size,
                     GUEST_MEMFD_FIRMWARE_UNIT);
        exit(EXIT_FAILURE);
    }
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

void guest_memfd_check_kernel(const MachineState *ms)
{
    g_autofree char *wrong = NULL;

    if (!ms->cgs) {
        return;
    }
    wrong = what_is_wrong(ms->kernel_filename);
    if (wrong) {
        error_report("kernel '%s': it cannot be used: %s", ms->kernel_filename,
                     wrong);
        exit(EXIT_FAILURE);
    }
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
    ERRP_GUARD();
    uint64_t ram = X86_MACHINE(ms)->below_4g_mem_size;
    bool hashes;

    if (is_tdx_vm()) {
        guest_memfd_check_tdx_tables(image, size, ram, is_one_piece, errp);
    } else if (sev_snp_enabled()) {
        hashes = object_property_get_bool(OBJECT(ms->cgs), "kernel-hashes",
                                          &error_abort);
        if (hashes && !ms->kernel_filename) {
            error_setg(errp, "kernel-hashes=on asks for hashes of a kernel, "
                       "but there is no -kernel");
            return false;
        }
        guest_memfd_check_snp_tables(image, size, ram, is_one_piece, hashes,
                                     errp);
    }
    if (*errp) {
        error_prepend(errp, "firmware '%s': ", firmware_name(ms));
        return false;
    }
    return true;
}

void guest_memfd_check_tables(const void *image, int size)
{
    check_image(current_machine, image, size, &error_fatal);
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

int guest_memfd_reload_firmware(MachineState *ms)
{
    X86MachineState *x86ms = (X86MachineState *)
        object_dynamic_cast(OBJECT(ms), TYPE_X86_MACHINE);
    uint64_t size = x86ms ? memory_region_size(&x86ms->bios) : 0;
    const char *name = firmware_name(ms);
    g_autoptr(GError) gerr = NULL;
    g_autofree char *file = NULL;
    g_autofree char *image = NULL;
    Error *err = NULL;
    gsize found;

    if (!ms->cgs || !size || x86ms->igvm) {
        return 0;
    }
    file = qemu_find_file(QEMU_FILE_TYPE_BIOS, name);
    if (!file || !g_file_get_contents(file, &image, &found, &gerr)) {
        error_report("the guest cannot be reset, because its firmware '%s' "
                     "cannot be read any more%s%s; put it back and reset "
                     "again", name, gerr ? ": " : "",
                     gerr ? gerr->message : "");
        return -ENOENT;
    }
    if (found != size) {
        error_report("the guest cannot be reset, because its firmware '%s' has "
                     "0x%" PRIx64 " bytes now, and had 0x%" PRIx64 " when QEMU "
                     "started; put the old one back and reset again", name,
                     (uint64_t)found, size);
        return -EINVAL;
    }
    if (!check_image(ms, image, found, &err)) {
        error_prepend(&err, "the guest cannot be reset, because its file has "
                      "changed; put the old one back and reset again: ");
        error_report_err(err);
        return -EINVAL;
    }
    return 0;
}
