/*
 * query-guest-memfd, query-launch-measurement, and info of these
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "hw/core/boards.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "qapi/clone-visitor.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-guest-memfd.h"
#include "qapi/qapi-visit-guest-memfd.h"
#include "qemu/cutils.h"
#include "qemu/datadir.h"
#include "qemu/lockable.h"
#include "qemu/module.h"
#include "gmem/accel/kvm/guest-memfd.h"
#include "gmem/system/guest-memfd-internal.h"
#include "gmem/system/guest-memfd-launch.h"
#include "system/memory.h"
#include "system/ramblock.h"

static GuestMemfdHost *describe_host(const GuestMemfdCaps *caps)
{
    GuestMemfdHost *host = g_new0(GuestMemfdHost, 1);
    GuestMemfdCreateFlagList **tail = &host->flags;
    GuestMemfdMissingList **missing_tail = &host->missing;
    GuestMemfdCreateFlag flag;
    GuestMemfdMissing missing;

    host->generation = caps->generation;
    for (missing = 0; missing < GUEST_MEMFD_MISSING__MAX; missing++) {
        if (caps->missing & BIT(missing)) {
            QAPI_LIST_APPEND(missing_tail, missing);
        }
    }
    host->missing_text = g_strdup(caps->missing_text);
    host->numa_policy = caps->numa_policy;
    for (flag = 0; flag < GUEST_MEMFD_CREATE_FLAG__MAX; flag++) {
        if (caps->flags & BIT_ULL(flag)) {
            QAPI_LIST_APPEND(tail, flag);
        }
    }
    return host;
}

static GuestMemfdSlotInfo *describe_slot(const GuestMemfdSlot *s)
{
    GuestMemfdSlotInfo *slot = g_new0(GuestMemfdSlotInfo, 1);

    slot->address_space = s->as_id ? GUEST_MEMFD_ADDRESS_SPACE_SMM
                                   : GUEST_MEMFD_ADDRESS_SPACE_MEMORY;
    slot->slot = s->slot;
    slot->gpa = s->gpa;
    slot->size = s->size;
    slot->offset = s->offset;
    slot->bound = s->bound;
    slot->has_reason = !s->bound;
    slot->reason = s->reason;
    return slot;
}

/* Conversions may go on meanwhile: the pages are those of a moment later. */
static void describe_pages(GuestMemfd *gmem, GuestMemfdBlock *block)
{
    const uint64_t page_size = qemu_real_host_page_size();
    GuestMemfdAccessCounters access = guest_memfd_access_counters(gmem);
    GuestMemfdCounters *c = block->counters;
    GuestMemfdState *s = &gmem->state;

    WITH_QEMU_LOCK_GUARD(&s->lock) {
        c->pages_to_private = s->to_private;
        c->pages_to_shared = s->to_shared;
        c->busy = s->busy;
        c->has_busy_offset = s->busy;
        c->busy_offset = s->busy_page * page_size;
    }
    c->denied = access.denied;
    c->touched = access.touched;

    block->q_private = guest_memfd_private_pages(gmem, &block->private_runs) *
                       page_size;
    block->shared = block->size - block->q_private;
    block->state = !block->q_private ? GUEST_MEMFD_PAGE_STATE_SHARED
                   : block->shared ? GUEST_MEMFD_PAGE_STATE_MIXED
                                   : GUEST_MEMFD_PAGE_STATE_PRIVATE;
}

static GuestMemfdBlock *describe_block(GuestMemfd *gmem)
{
    GuestMemfdBlock *block = g_new0(GuestMemfdBlock, 1);
    GuestMemfdSlotInfoList **tail = &block->slots;
    const GuestMemfdSlot *s;

    block->id = g_strdup(memory_region_name(gmem->rb->mr));
    block->size = gmem->rb->max_length;
    block->inode = gmem->inode;
    block->has_allocated = guest_memfd_allocated(gmem, 0, block->size,
                                                 &block->allocated);
    QTAILQ_FOREACH(s, &gmem->slots, next) {
        QAPI_LIST_APPEND(tail, describe_slot(s));
    }
    block->counters = g_new0(GuestMemfdCounters, 1);
    block->counters->bound = gmem->bound;
    block->counters->plain = gmem->plain;
    block->counters->replaced = gmem->replaced;
    describe_pages(gmem, block);
    return block;
}

static GuestMemfdLaunchPages *describe_range(const GuestMemfdLaunchRange *r)
{
    GuestMemfdLaunchPages *pages = g_new0(GuestMemfdLaunchPages, 1);

    pages->gpa = r->gpa;
    pages->size = r->size;
    pages->type = g_strdup(r->type);
    pages->measured = r->measured;
    pages->digest = r->measured ? guest_memfd_launch_hex(r->digest) : NULL;
    return pages;
}

GuestMemfdInfo *qmp_query_guest_memfd(Error **errp)
{
    GuestMemfdInfo *info = g_new0(GuestMemfdInfo, 1);
    GuestMemfdBlockList **tail = &info->blocks;
    GuestMemfdLaunchPagesList **launch = &info->launch;
    const GuestMemfdLaunchRange *r;
    GuestMemfd *gmem;

    info->host = describe_host(kvm_guest_memfd_caps());
    QTAILQ_FOREACH(gmem, guest_memfd_list(), next) {
        QAPI_LIST_APPEND(tail, describe_block(gmem));
    }
    QSIMPLEQ_FOREACH(r, guest_memfd_launch(), next) {
        QAPI_LIST_APPEND(launch, describe_range(r));
    }
    return info;
}

LaunchMeasurement *qmp_query_launch_measurement(Error **errp)
{
    const LaunchMeasurement *m = guest_memfd_launch_measurement();
    ConfidentialGuestSupport *cgs = current_machine->cgs;

    if (m) {
        return QAPI_CLONE(LaunchMeasurement, m);
    }
    if (!cgs) {
        error_setg(errp, "This is not a confidential guest, so nothing is "
                   "measured; see confidential-guest-support= of -machine");
    } else if (!object_dynamic_cast(OBJECT(cgs), "sev-snp-guest") &&
               !object_dynamic_cast(OBJECT(cgs), "tdx-guest")) {
        error_setg(errp, "QEMU knows the launch measurement of sev-snp-guest "
                   "and tdx-guest only; this is a %s",
                   object_get_typename(OBJECT(cgs)));
    } else {
        error_setg(errp, "This guest is not launched yet, so its measurement "
                   "is not complete; let it run first (cont)");
    }
    return NULL;
}

static void print_host(Monitor *mon, const GuestMemfdHost *host)
{
    GuestMemfdCreateFlagList *f;

    monitor_printf(mon, "host: %s", GuestMemfdGeneration_str(host->generation));
    for (f = host->flags; f; f = f->next) {
        monitor_printf(mon, ", %s", GuestMemfdCreateFlag_str(f->value));
    }
    monitor_printf(mon, "%s\n", host->numa_policy ? ", numa-policy" : "");
    if (host->missing_text) {
        monitor_printf(mon, "  %s\n", host->missing_text);
    }
}

static void print_slot(Monitor *mon, const GuestMemfdSlotInfo *s)
{
    monitor_printf(mon, "  %016" PRIx64 "-%016" PRIx64 " @%010" PRIx64
                   " %s slot %" PRId64 " %s",
                   s->gpa, s->gpa + s->size - 1, s->offset,
                   GuestMemfdAddressSpace_str(s->address_space), s->slot,
                   s->bound ? "bound" : "plain");
    if (s->has_reason) {
        monitor_printf(mon, " (%s)", GuestMemfdPlainReason_str(s->reason));
    }
    monitor_printf(mon, "\n");
}

static void print_block(Monitor *mon, const GuestMemfdBlock *block)
{
    g_autofree char *size = size_to_str(block->size);
    g_autofree char *allocated = size_to_str(block->allocated);
    GuestMemfdSlotInfoList *s;

    monitor_printf(mon, "%s: %s, inode %" PRIu64 ", %s, %s allocated\n",
                   block->id, size, block->inode,
                   GuestMemfdPageState_str(block->state),
                   block->has_allocated ? allocated : "unknown number");
    if (block->counters->pages_to_private) {
        g_autofree char *private = size_to_str(block->q_private);

        monitor_printf(mon, "  private %s, runs %" PRIu64 ", pages to private "
                       "%" PRIu64 ", to shared %" PRIu64 ", busy %" PRIu64
                       " times\n", private, block->private_runs,
                       block->counters->pages_to_private,
                       block->counters->pages_to_shared,
                       block->counters->busy);
        monitor_printf(mon, "  devices denied %" PRIu64 " times, touched "
                       "private pages %" PRIu64 " times\n",
                       block->counters->denied, block->counters->touched);
        if (block->counters->has_busy_offset) {
            monitor_printf(mon, "  busy last: offset 0x%" PRIx64 "\n",
                           block->counters->busy_offset);
        }
    }
    for (s = block->slots; s; s = s->next) {
        print_slot(mon, s->value);
    }
    monitor_printf(mon, "  slots bound %" PRIu64 ", plain %" PRIu64
                   ", replaced %" PRIu64 " times\n", block->counters->bound,
                   block->counters->plain, block->counters->replaced);
}

static bool is_same_launch(const GuestMemfdLaunchPages *a,
                           const GuestMemfdLaunchPages *b)
{
    return a->gpa == b->gpa && a->size == b->size &&
           !g_strcmp0(a->digest, b->digest);
}

/* All vCPUs but the first have the same state. */
static void print_launch(Monitor *mon, const GuestMemfdLaunchPagesList *list)
{
    while (list) {
        const GuestMemfdLaunchPages *p = list->value;
        unsigned times = 0;

        for (; list && is_same_launch(p, list->value); list = list->next) {
            times++;
        }
        monitor_printf(mon, "launch: %016" PRIx64 "-%016" PRIx64 " %s%s%s",
                       p->gpa, p->gpa + p->size - 1, p->type,
                       p->measured ? ", measured: " : "",
                       p->measured ? p->digest : "");
        if (times > 1) {
            monitor_printf(mon, ", %u times", times);
        }
        monitor_printf(mon, "\n");
    }
}

static void hmp_info_guest_memfd(Monitor *mon, const QDict *qdict)
{
    g_autoptr(GuestMemfdInfo) info = qmp_query_guest_memfd(&error_abort);
    GuestMemfdBlockList *b;

    print_host(mon, info->host);
    for (b = info->blocks; b; b = b->next) {
        print_block(mon, b->value);
    }
    print_launch(mon, info->launch);
}

static void print_option(Monitor *mon, const char *option, const char *value)
{
    g_autofree char *quoted = g_shell_quote(value);

    monitor_printf(mon, " %s %s", option, quoted);
}

/*
 * Where the firmware is, as a verifier's tool needs it; -L counts.  NULL if an
 * IGVM file has it.
 */
static char *firmware_file(void)
{
    const char *name = current_machine->firmware;

    return name && !object_property_get_link(OBJECT(current_machine),
                                             "igvm-cfg", NULL)
           ? qemu_find_file(QEMU_FILE_TYPE_BIOS, name) : NULL;
}

/* Options that sev-snp-measure and scripts/launch-digest have in common */
static void print_sev_snp(Monitor *mon, const LaunchMeasurementSevSnp *snp)
{
    const MachineState *ms = current_machine;
    g_autofree char *firmware = firmware_file();

    monitor_printf(mon, "sev-snp launch digest, as in the attestation "
                   "report: %s\n", snp->digest_after_vmsas);
    monitor_printf(mon, "before the vCPUs' VMSAs: %s\n",
                   snp->digest_before_vmsas);
    monitor_printf(mon, "policy: 0x%" PRIx64 "\n", snp->policy);
    if (!firmware) {
        monitor_printf(mon, "vcpus: %u, vcpu-sig: 0x%x, guest-features: 0x%"
                       PRIx64 "; memory as an IGVM file has it\n", snp->vcpus,
                       snp->vcpu_signature, snp->guest_features);
        return;
    }
    monitor_printf(mon, "to compute it: sev-snp-measure --mode snp "
                   "--vcpus %u --vcpu-sig 0x%x --guest-features 0x%" PRIx64,
                   snp->vcpus, snp->vcpu_signature, snp->guest_features);
    print_option(mon, "--ovmf", firmware);
    if (object_property_get_bool(OBJECT(ms->cgs), "kernel-hashes", NULL)) {
        print_option(mon, "--kernel", ms->kernel_filename);
        if (ms->initrd_filename) {
            print_option(mon, "--initrd", ms->initrd_filename);
        }
        if (ms->kernel_cmdline && *ms->kernel_cmdline) {
            print_option(mon, "--append", ms->kernel_cmdline);
        }
    }
    monitor_printf(mon, "\n");
}

static void print_tdx(Monitor *mon, const LaunchMeasurementTdx *tdx)
{
    g_autofree char *firmware = firmware_file();

    monitor_printf(mon, "tdx MRTD: %s\n", tdx->mrtd);
    monitor_printf(mon, "MRCONFIGID: %s\n", tdx->mrconfigid);
    monitor_printf(mon, "MROWNER: %s\n", tdx->mrowner);
    monitor_printf(mon, "MROWNERCONFIG: %s\n", tdx->mrownerconfig);
    if (firmware) {
        g_autofree char *quoted = g_shell_quote(firmware);

        monitor_printf(mon, "to compute MRTD: launch-digest tdx %s\n",
                       quoted);
    }
}

static void hmp_info_launch_measurement(Monitor *mon, const QDict *qdict)
{
    Error *err = NULL;
    g_autoptr(LaunchMeasurement) m = qmp_query_launch_measurement(&err);

    if (hmp_handle_error(mon, err)) {
        return;
    }
    if (m->type == LAUNCH_MEASUREMENT_TYPE_SEV_SNP) {
        print_sev_snp(mon, &m->u.sev_snp);
    } else {
        print_tdx(mon, &m->u.tdx);
    }
}

static void guest_memfd_register_hmp(void)
{
    monitor_register_hmp("guest-memfd", true, hmp_info_guest_memfd);
    monitor_register_hmp("launch-measurement", true,
                         hmp_info_launch_measurement);
}

type_init(guest_memfd_register_hmp)
