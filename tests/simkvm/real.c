/*
 * simkvm: kvm mode, guest code on a real KVM
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "simkvm.h"
int sim_real_create_gmem(SimVm *vm, uint64_t size){return -ENOSYS;}
uint64_t sim_real_allocated(int fd){return 0;}
int sim_real_set_region(SimVm *vm, const struct kvm_userspace_memory_region2 *r){return -ENOSYS;}
int sim_real_attributes_changed(SimVm *vm, uint64_t gpa, uint64_t size){return -ENOSYS;}
int sim_real_run(SimVcpu *vcpu, int fd){return -ENOSYS;}
int sim_real_create_vm(void){return -ENOSYS;}
