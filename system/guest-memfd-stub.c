/*
 * KVM guest_memfd where the host is not Linux: nothing of it
 *
 * What QEMU's code calls there, with the answers that it would have without
 * us.  tests/hooks/run looks whether all of it is here.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-guest-memfd.h"
#include "hw/i386/guest-memfd-firmware.h"
#include "system/guest-memfd.h"
#include "system/guest-memfd-access.h"
#include "gmem/system/guest-memfd-balloon.h"
#include "gmem/system/guest-memfd-rebuild.h"
#include "system/memory.h"
#include "system/ramblock.h"

/* RAM blocks */

bool guest_memfd_ram_block_init(RAMBlock *rb, Error **errp)
{
    return true;
}

bool guest_memfd_ram_is_in_place(uint32_t ram_flags)
{
    return false;
}

bool guest_memfd_ram_is_separate(const RAMBlock *rb)
{
    return rb->flags & RAM_GUEST_MEMFD;
}

int guest_memfd_shared_file(const RAMBlock *rb)
{
    return rb->fd;
}

bool guest_memfd_check_vhost_user(Error **errp)
{
    return true;
}

bool guest_memfd_patches_kernel(const MachineState *machine)
{
    return !machine->cgs;
}

bool guest_memfd_is_required(const MachineState *machine)
{
    return false;
}

void guest_memfd_cgs_class_add(ObjectClass *oc)
{
}

bool guest_memfd_prealloc_mem(int fd, char *area, size_t sz, int max_threads,
                              ThreadContext *tc, bool async, Error **errp)
{
    return qemu_prealloc_mem(fd, area, sz, max_threads, tc, async, errp);
}

bool guest_memfd_backend_set_merge(HostMemoryBackend *backend, bool value,
                                   Error **errp)
{
    return true;
}

/* Balloon: every page may go. */

RAMBlock *guest_memfd_balloon_block(AddressSpace *as, hwaddr addr, void *host,
                                    uint64_t size, ram_addr_t *offset)
{
    return qemu_ram_block_from_host(host, false, offset);
}

void guest_memfd_balloon_discard(RAMBlock *rb, uint64_t offset, uint64_t size)
{
    ram_block_discard_range(rb, offset, size);
}

/* Access: no page is ever hidden. */

bool guest_memfd_some_hidden;

MemoryRegion *guest_memfd_shown(MemoryRegion *mr, uint64_t offset,
                                uint64_t *len)
{
    return mr;
}

MemoryRegion *guest_memfd_mapped(MemoryRegion *mr, uint64_t *offset,
                                 uint64_t *len, bool is_write)
{
    return mr;
}

bool guest_memfd_cache_is_direct(MemoryRegion *mr, bool is_write)
{
    return memory_access_is_direct(mr, is_write, MEMTXATTRS_UNSPECIFIED);
}

void *guest_memfd_map_shared(AddressSpace *as, uint64_t addr, uint64_t *len,
                             bool is_write)
{
    return address_space_map(as, addr, len, is_write, MEMTXATTRS_UNSPECIFIED);
}

/* Resets: none makes a new VM in which RAM has to be replaced. */

int guest_memfd_rebuild(int (*rebuild)(MachineState *ms), MachineState *ms)
{
    return rebuild(ms);
}

bool guest_memfd_rebuild_failed(void)
{
    return false;
}

void guest_memfd_reset_end(void)
{
}

RunState guest_memfd_state_after_reset(void)
{
    return RUN_STATE_PRELAUNCH;
}

/* QMP */

GuestMemfdInfo *qmp_query_guest_memfd(Error **errp)
{
    GuestMemfdInfo *info = g_new0(GuestMemfdInfo, 1);

    info->host = g_new0(GuestMemfdHost, 1);
    QAPI_LIST_PREPEND(info->host->missing, GUEST_MEMFD_MISSING_KVM);
    info->host->missing_text = g_strdup("this host is not Linux");
    return info;
}

LaunchMeasurement *qmp_query_launch_measurement(Error **errp)
{
    error_setg(errp, "There is no launch measurement, because this host is "
               "not Linux");
    return NULL;
}

/* Firmware of confidential guests */

void guest_memfd_check_bios(const MachineState *ms, const char *name,
                            const char *file)
{
}

void guest_memfd_check_pflash(const MachineState *ms)
{
}

void guest_memfd_check_kernel(const MachineState *ms)
{
}

void guest_memfd_check_tables(const void *image, int size)
{
}

/* The table stays: nothing but a reset in a new VM parses it again. */
void guest_memfd_forget_table(uint8_t **end, int *size)
{
}
