/*
 * RAM blocks that are a KVM guest_memfd: a reset that needs a new VM
 *
 * All functions are called with the BQL held unless they say otherwise.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef SYSTEM_GUEST_MEMFD_REBUILD_H
#define SYSTEM_GUEST_MEMFD_REBUILD_H

#include "qapi/qapi-types-run-state.h"
#include "hw/core/boards.h"

/**
 * guest_memfd_rebuild: AccelClass::rebuild_guest, and what it needs
 * @rebuild: that method
 *
 * vCPUs stand still.
 * Returns: what @rebuild does, 0 or -errno.
 */
int guest_memfd_rebuild(int (*rebuild)(MachineState *ms), MachineState *ms);

/**
 * guest_memfd_rebind: give RAM to the VM that was just created
 *
 * Returns: 0; or -errno, and the reason was reported.
 */
int guest_memfd_rebind(void);

/** guest_memfd_rebuilds: how often that was done so far.  Needs no lock. */
unsigned guest_memfd_rebuilds(void);

/**
 * guest_memfd_rebuild_failed: was the guest lost by the last reset?
 *
 * It must not run then, and can be reset again.
 */
bool guest_memfd_rebuild_failed(void);

/**
 * guest_memfd_rebuild_notify: have QEMU save what the VM knows
 * @notify: how
 *
 * Not if the last attempt has left no whole VM: what it was is saved.
 * Returns: what @notify does, 0 or -errno.
 */
int guest_memfd_rebuild_notify(int (*notify)(Error **errp), Error **errp);

/**
 * guest_memfd_rebuild_vcpus: create the vCPUs in the new VM
 * @rebind: how
 *
 * QEMU frees a vCPU twice if that fails and is tried again, so it is not.
 * Returns: what @rebind does, 0 or -errno; errors are reported.
 */
int guest_memfd_rebuild_vcpus(int (*rebind)(Error **errp), Error **errp);

/**
 * guest_memfd_rebuild_region_failed: may a memslot that KVM refuses be missing?
 * @create: KVM has refused to create it, not to delete it
 *
 * Returns: true during a reset that makes a new VM: slots of the old one go
 * with it, and without a slot the new one does not run.
 */
bool guest_memfd_rebuild_region_failed(bool create);

/** guest_memfd_reset_end: the devices are reset, and the guest is launched. */
void guest_memfd_reset_end(void);

/** guest_memfd_state_after_reset: of a VM that does not run. */
RunState guest_memfd_state_after_reset(void);

/**
 * guest_memfd_may_launch: may a reset launch the guest?
 *
 * A guest with a new VM has to be launched before it runs on, even if it is
 * stopped now.
 */
bool guest_memfd_may_launch(void);

/**
 * guest_memfd_launch_failed: the guest cannot be launched
 * @err: why; reported and freed
 *
 * If it was to be launched for the first time, QEMU ends.  Else the VM is
 * stopped when the reset is over.
 */
void guest_memfd_launch_failed(Error *err);

/**
 * guest_memfd_relaunch_failed: the same for an error that QEMU reports
 * @ret: what a step of the launch has come to; not 0 is an error
 *
 * Returns: false if there is no error, or if QEMU is to end as it would.
 */
bool guest_memfd_relaunch_failed(int ret);

/**
 * guest_memfd_launch_errp: for a step that QEMU expects to end it on error
 *
 * Returns: error_fatal for the first launch.  Else what guest_memfd_launch_ok()
 * looks at; that has to be called before the launch is finished.
 */
Error **guest_memfd_launch_errp(void);

/** guest_memfd_launch_ok: has every step of the launch succeeded so far? */
bool guest_memfd_launch_ok(void);

#endif
