/*
 * simkvm: guest_memfd, memslots, and which pages are private
 *
 * A guest_memfd is a memfd, or in kvm mode the real KVM's.  The model has a
 * view of all of it.  In the emulator's mappings, an empty file is mapped
 * over private pages: a touch raises SIGBUS, and system calls get EFAULT.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <stdio.h>
#include <sys/stat.h>
#include "simkvm.h"

#define ROUND_UP(n, d) (((n) + (d) - 1) / (d) * (d))

#define MAX_SLOTS 32764                 /* KVM_CAP_NR_MEMSLOTS */
#define MAX_SLOT_PAGES ((1ULL << 31) - 1)
#define GPA_PAGES (1ULL << (52 - SIM_PAGE_SHIFT))

/* For the list below; taken after SimVm.lock and before SimGmem.lock. */
static pthread_mutex_t gmems_lock = PTHREAD_MUTEX_INITIALIZER;
static GPtrArray *gmems;                /* SimGmem *, no references */
static uint64_t gmems_created;

static bool aligned(uint64_t n)
{
    return n % SIM_PAGE == 0;
}

/* An empty file: to touch a mapping of it raises SIGBUS. */
static int empty_file(void)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static int fd = -1;

    pthread_mutex_lock(&lock);
    if (fd < 0) {
        fd = memfd_create("simkvm-private", MFD_CLOEXEC);
        g_assert(fd >= 0);
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

/* --- guest_memfd --- */

/* The flags that a file of this VM may have: KVM_CAP_GUEST_MEMFD_FLAGS. */
uint64_t sim_gmem_flags(const SimVm *vm)
{
    switch (sim_config.generation) {
    case SIM_G0:
        return 0;
    case SIM_G1:
        return vm && sim_vm_has_private(vm) ? GUEST_MEMFD_FLAG_MMAP
               : GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
    default:
        return GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
    }
}

static uint64_t gmem_allocated(SimGmem *gmem)
{
    struct stat st;

    if (sim_config.kvm) {
        return sim_real_allocated(gmem->fd);
    }
    return sim_real_fstat(gmem->fd, &st) ? 0 : st.st_blocks * 512;
}

/* Bytes in the files of all VMs. */
static uint64_t all_allocated(void)
{
    uint64_t bytes = 0;
    guint i;

    pthread_mutex_lock(&gmems_lock);
    for (i = 0; gmems && i < gmems->len; i++) {
        bytes += gmem_allocated(g_ptr_array_index(gmems, i));
    }
    pthread_mutex_unlock(&gmems_lock);
    return bytes;
}

static void gmem_closed(void *object)
{
    sim_gmem_unref(object);
}

int sim_gmem_create(SimVm *vm, struct kvm_create_guest_memfd *args)
{
    SimGmem *gmem;
    size_t i;
    int fd, ret = sim_fault("KVM_CREATE_GUEST_MEMFD", NULL);

    if (ret) {
        return ret;
    }
    for (i = 0; i < G_N_ELEMENTS(args->reserved); i++) {
        if (args->reserved[i] && sim_config.strict) {
            sim_violation("KVM_CREATE_GUEST_MEMFD: reserved[%zu] is 0x%"
                          PRIx64, i, (uint64_t)args->reserved[i]);
        }
    }
    if (args->flags & ~sim_gmem_flags(vm)) {
        return sim_refuse(EINVAL, "KVM_CREATE_GUEST_MEMFD: flags 0x%" PRIx64
                          ", but 0x%" PRIx64 " are offered",
                          (uint64_t)args->flags, sim_gmem_flags(vm));
    }
    if (!args->size || !aligned(args->size) || args->size > INT64_MAX) {
        return sim_refuse(EINVAL, "KVM_CREATE_GUEST_MEMFD: size 0x%" PRIx64,
                          (uint64_t)args->size);
    }

    if (sim_config.kvm) {
        fd = sim_real_create_gmem(vm, args->size);
    } else {
        /* KVM has no flag for close-on-exec, and does not set it. */
        fd = memfd_create("simkvm-guest_memfd", 0);
        if (fd >= 0 && ftruncate(fd, args->size)) {
            sim_real_close(fd);
            fd = -1;
        }
        fd = fd < 0 ? -errno : fd;
    }
    if (fd < 0) {
        return fd;
    }

    gmem = g_new0(SimGmem, 1);
    gmem->refs = 1;
    gmem->vm = sim_vm_ref(vm);
    gmem->size = args->size;
    gmem->flags = args->flags;
    gmem->fd = sim_real_dup(fd);
    gmem->view = sim_real_mmap(NULL, gmem->size, PROT_READ | PROT_WRITE,
                               MAP_SHARED | MAP_NORESERVE, gmem->fd, 0);
    if (gmem->fd < 0 || gmem->view == MAP_FAILED) {
        sim_violation("cannot map a guest_memfd of 0x%" PRIx64 " bytes: %s",
                      gmem->size, strerror(errno));
    }
    /* A core dump of a test is no place for a terabyte. */
    madvise(gmem->view, gmem->size, MADV_DONTDUMP);
    pthread_mutex_init(&gmem->lock, NULL);
    gmem->mappings = g_array_new(FALSE, FALSE, sizeof(SimMapping));
    sim_bitmap_init(&gmem->private, gmem->size >> SIM_PAGE_SHIFT);
    sim_bitmap_init(&gmem->populated, gmem->size >> SIM_PAGE_SHIFT);
    if (sim_in_place() && !(gmem->flags & GUEST_MEMFD_FLAG_INIT_SHARED)) {
        sim_bitmap_fill(&gmem->private, 0, gmem->size >> SIM_PAGE_SHIFT, true);
    }

    pthread_mutex_lock(&gmems_lock);
    if (!gmems) {
        gmems = g_ptr_array_new();
    }
    gmem->number = gmems_created++;
    g_ptr_array_add(gmems, gmem);
    pthread_mutex_unlock(&gmems_lock);
    pthread_mutex_lock(&vm->lock);
    g_ptr_array_add(vm->gmems, gmem);
    pthread_mutex_unlock(&vm->lock);
    sim_count(SIM_GMEMS_ALIVE, 1);
    /* Files of another VM may still have pages. */
    sim_report_memory(all_allocated(), 0);
    return sim_file_add(fd, SIM_GMEM, gmem, gmem_closed);
}

SimGmem *sim_gmem_ref(SimGmem *gmem)
{
    __atomic_fetch_add(&gmem->refs, 1, __ATOMIC_RELAXED);
    return gmem;
}

/* Descriptors hold references, and all mappings one; slots do not. */
void sim_gmem_unref(SimGmem *gmem)
{
    SimVm *vm = gmem->vm;
    guint i;

    if (__atomic_sub_fetch(&gmem->refs, 1, __ATOMIC_ACQ_REL)) {
        return;
    }
    pthread_mutex_lock(&vm->lock);
    g_ptr_array_remove(vm->gmems, gmem);
    for (i = 0; i < vm->slots->len; i++) {
        SimSlot *slot = g_ptr_array_index(vm->slots, i);

        if (slot->gmem == gmem) {
            slot->gmem = NULL;
        }
    }
    pthread_mutex_unlock(&vm->lock);
    pthread_mutex_lock(&gmems_lock);
    g_ptr_array_remove_fast(gmems, gmem);
    pthread_mutex_unlock(&gmems_lock);

    sim_real_munmap(gmem->view, gmem->size);
    sim_real_close(gmem->fd);
    sim_bitmap_free(&gmem->private);
    sim_bitmap_free(&gmem->populated);
    g_array_free(gmem->mappings, TRUE);
    pthread_mutex_destroy(&gmem->lock);
    g_free(gmem);
    sim_count(SIM_GMEMS_ALIVE, -1);
    sim_vm_unref(vm);
}

/* Takes a reference; false if the last one is gone already. */
static bool gmem_try_ref(SimGmem *gmem)
{
    int refs = __atomic_load_n(&gmem->refs, __ATOMIC_RELAXED);
    bool had = false;

    while (refs && !had) {
        had = __atomic_compare_exchange_n(&gmem->refs, &refs, refs + 1, false,
                                          __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
    }
    return had;
}

/*
 * The first mapping that ends behind @addr, or their number.  They are sorted
 * by address and do not overlap.  With gmem->lock held.
 */
static guint find_mapping(const SimGmem *gmem, const uint8_t *addr)
{
    guint low = 0, high = gmem->mappings->len;

    while (low < high) {
        guint middle = low + (high - low) / 2;
        SimMapping *m = &g_array_index(gmem->mappings, SimMapping, middle);

        if (m->addr + m->len <= addr) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

SimGmem *sim_gmem_at(const void *addr, uint64_t *offset)
{
    SimGmem *found = NULL;
    guint i, j;

    pthread_mutex_lock(&gmems_lock);
    for (i = 0; gmems && !found && i < gmems->len; i++) {
        SimGmem *gmem = g_ptr_array_index(gmems, i);

        pthread_mutex_lock(&gmem->lock);
        j = find_mapping(gmem, addr);
        if (j < gmem->mappings->len) {
            SimMapping *m = &g_array_index(gmem->mappings, SimMapping, j);

            if ((uint8_t *)addr >= m->addr && gmem_try_ref(gmem)) {
                *offset = m->offset + ((uint8_t *)addr - m->addr);
                found = gmem;
            }
        }
        pthread_mutex_unlock(&gmem->lock);
    }
    pthread_mutex_unlock(&gmems_lock);
    return found;
}

/*
 * Is @addr, of @size bytes, the mapping of @offset?  An emulator may have
 * mapped something else over a part of it.
 */
static bool gmem_is_mapped(SimGmem *gmem, const uint8_t *addr, uint64_t size,
                           uint64_t offset)
{
    bool is = false;
    guint i;

    pthread_mutex_lock(&gmem->lock);
    i = find_mapping(gmem, addr);
    if (i < gmem->mappings->len) {
        SimMapping *m = &g_array_index(gmem->mappings, SimMapping, i);

        is = m->addr < addr + size &&
             (uint64_t)(m->addr - addr) == m->offset - offset;
    }
    pthread_mutex_unlock(&gmem->lock);
    return is;
}

/* Make a mapping show the state of its pages in a range of the file. */
static void map_state(SimGmem *gmem, const SimMapping *m, uint64_t offset,
                      uint64_t size)
{
    uint64_t start = MAX(offset, m->offset) >> SIM_PAGE_SHIFT;
    uint64_t end = MIN(MIN(offset + size, m->offset + m->len), gmem->size)
                   >> SIM_PAGE_SHIFT;
    uint64_t page, next;

    for (page = start; page < end; page = next) {
        uint64_t at = page << SIM_PAGE_SHIFT;
        bool private = sim_bitmap_test(&gmem->private, page);
        void *addr = m->addr + (at - m->offset);

        next = sim_bitmap_run(&gmem->private, page, end);
        if (sim_real_mmap(addr, (next - page) << SIM_PAGE_SHIFT, m->prot,
                          MAP_SHARED | MAP_FIXED | MAP_NORESERVE,
                          private ? empty_file() : gmem->fd,
                          private ? 0 : at) == MAP_FAILED) {
            sim_unmodelled("so many runs of private pages (vm.max_map_count): "
                           "%s", strerror(errno));
        }
    }
}

/* Are the file's pages private at first?  Without conversion they stay so. */
static bool gmem_init_private(const SimGmem *gmem)
{
    return !(gmem->flags & GUEST_MEMFD_FLAG_INIT_SHARED);
}

/*
 * Enters a mapping where there is none.  It is merged with neighbours that are
 * contiguous in the file: an emulator may map a file page by page.
 */
static void add_mapping(SimGmem *gmem, SimMapping m)
{
    guint i = find_mapping(gmem, m.addr);
    SimMapping *next = &g_array_index(gmem->mappings, SimMapping, i);

    if (i < gmem->mappings->len && next->addr == m.addr + m.len &&
        next->offset == m.offset + m.len && next->prot == m.prot) {
        m.len += next->len;
        g_array_remove_index(gmem->mappings, i);
    }
    if (i) {
        SimMapping *last = &g_array_index(gmem->mappings, SimMapping, i - 1);

        if (last->addr + last->len == m.addr &&
            last->offset + last->len == m.offset && last->prot == m.prot) {
            last->len += m.len;
            return;
        }
    }
    g_array_insert_val(gmem->mappings, i, m);
}

void *sim_gmem_mmap(SimGmem *gmem, void *addr, size_t len, int prot, int flags,
                    int fd, off_t offset)
{
    SimMapping m = { .len = ROUND_UP(len, SIM_PAGE), .offset = offset,
                     .prot = prot };
    void *p;

    if (!(gmem->flags & GUEST_MEMFD_FLAG_MMAP)) {
        errno = ENODEV;
        return MAP_FAILED;
    }
    if ((flags & MAP_TYPE) == MAP_PRIVATE || !aligned(offset)) {
        errno = EINVAL;
        return MAP_FAILED;
    }
    if (prot & PROT_EXEC) {
        errno = EPERM;
        return MAP_FAILED;
    }

    if (flags & MAP_FIXED) {
        sim_gmem_unmap(addr, m.len);
    }
    pthread_mutex_lock(&gmem->lock);
    /* No private page may be visible, not even before map_state(). */
    if (sim_in_place() || gmem_init_private(gmem)) {
        p = sim_real_mmap(addr, len, prot, flags, empty_file(), 0);
    } else {
        p = sim_real_mmap(addr, len, prot, flags, fd, offset);
    }
    if (p != MAP_FAILED) {
        m.addr = p;
        if (sim_in_place()) {
            map_state(gmem, &m, m.offset, m.len);
        }
        if (!gmem->mappings->len) {
            sim_gmem_ref(gmem);
        }
        add_mapping(gmem, m);
    }
    pthread_mutex_unlock(&gmem->lock);
    return p;
}

/* Cut the mapping in two that goes across @addr. */
static void split_mapping(SimGmem *gmem, uint8_t *addr)
{
    guint i = find_mapping(gmem, addr);
    SimMapping *m = &g_array_index(gmem->mappings, SimMapping, i);

    if (i < gmem->mappings->len && m->addr < addr) {
        uint64_t len = addr - m->addr;
        SimMapping tail = { addr, m->len - len, m->offset + len, m->prot };

        m->len = len;
        g_array_insert_val(gmem->mappings, i + 1, tail);
    }
}

/* Take a range out of a file's mappings.  Returns true if none is left. */
static bool trim_mappings(SimGmem *gmem, uint8_t *addr, uint8_t *end)
{
    guint first, behind;

    split_mapping(gmem, addr);
    split_mapping(gmem, end);
    first = find_mapping(gmem, addr);
    behind = find_mapping(gmem, end);
    if (first == behind) {
        return false;
    }
    g_array_remove_range(gmem->mappings, first, behind - first);
    return !gmem->mappings->len;
}

void sim_gmem_unmap(void *addr, size_t len)
{
    g_autoptr(GPtrArray) gone = NULL;
    guint i;

    pthread_mutex_lock(&gmems_lock);
    for (i = 0; gmems && i < gmems->len; i++) {
        SimGmem *gmem = g_ptr_array_index(gmems, i);

        pthread_mutex_lock(&gmem->lock);
        if (trim_mappings(gmem, addr,
                          (uint8_t *)addr + ROUND_UP(len, SIM_PAGE))) {
            if (!gone) {
                gone = g_ptr_array_new();
            }
            g_ptr_array_add(gone, gmem);
        }
        pthread_mutex_unlock(&gmem->lock);
    }
    pthread_mutex_unlock(&gmems_lock);
    for (i = 0; gone && i < gone->len; i++) {
        sim_gmem_unref(g_ptr_array_index(gone, i));
    }
}

int sim_gmem_fallocate(SimGmem *gmem, int mode, off_t offset, off_t len)
{
    int ret = sim_fault("fallocate", NULL);

    if (ret) {
        return ret;
    }
    if (mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE) ||
        !(mode & FALLOC_FL_KEEP_SIZE)) {
        return sim_refuse(EOPNOTSUPP, "fallocate: mode 0x%x on a guest_memfd",
                          mode);
    }
    if (offset < 0 || len <= 0 || !aligned(offset) || !aligned(len)) {
        return sim_refuse(EINVAL, "fallocate: offset 0x%" PRIx64 ", length 0x%"
                          PRIx64, (uint64_t)offset, (uint64_t)len);
    }
    if ((uint64_t)offset + len > gmem->size) {
        if (!(mode & FALLOC_FL_PUNCH_HOLE)) {
            return sim_refuse(EINVAL, "fallocate: past the end");
        }
        if ((uint64_t)offset >= gmem->size) {
            return 0;
        }
        len = gmem->size - offset;
    }
    pthread_mutex_lock(&gmem->lock);
    ret = sim_real_fallocate(gmem->fd, mode, offset, len);
    if (!ret && mode & FALLOC_FL_PUNCH_HOLE) {
        sim_bitmap_fill(&gmem->populated, offset >> SIM_PAGE_SHIFT,
                        len >> SIM_PAGE_SHIFT, false);
    }
    pthread_mutex_unlock(&gmem->lock);
    return ret;
}

/* --- undefined contents --- */

static void scramble_page(uint8_t *page)
{
    uint64_t *word = (uint64_t *)page;
    size_t i;

    /* Neither the old contents, nor zero, nor the same for all pages */
    for (i = 0; i < SIM_PAGE / sizeof(*word); i++) {
        word[i] = ~word[i] * 0x9e3779b97f4a7c15ULL + i + 1;
    }
}

/* Is the page allocated, and not all zeros? */
static bool page_in_core(SimGmem *gmem, uint64_t page)
{
    unsigned char in_core;

    return !mincore(gmem->view + (page << SIM_PAGE_SHIFT), SIM_PAGE,
                    &in_core) && in_core & 1;
}

/* The first page from @page on, before @end, that is allocated; else @end. */
static uint64_t next_allocated(SimGmem *gmem, uint64_t page, uint64_t end)
{
    off_t data;

    if (!sim_config.kvm) {
        data = lseek(gmem->fd, page << SIM_PAGE_SHIFT, SEEK_DATA);
        return data < 0 ? end : MIN((uint64_t)data >> SIM_PAGE_SHIFT, end);
    }
    /* A real guest_memfd has no seeking. */
    while (page < end && !page_in_core(gmem, page)) {
        page++;
    }
    return page;
}

/* The same for pages that are private, too, and that no launch has taken. */
static uint64_t next_unpopulated(SimGmem *gmem, uint64_t page, uint64_t end)
{
    for (; page < end; page++) {
        page = next_allocated(gmem, page, end);
        if (page < end && sim_bitmap_test(&gmem->private, page) &&
            !sim_bitmap_test(&gmem->populated, page)) {
            break;
        }
    }
    return page;
}

/*
 * Contents that were written while the page was shared, and not populated
 * since, are lost; an emulator that writes a page means the guest to have it.
 */
static void check_not_lost(SimGmem *gmem, uint64_t page)
{
    static const uint8_t zeros[SIM_PAGE];

    if (sim_config.strict &&
        memcmp(gmem->view + (page << SIM_PAGE_SHIFT), zeros, SIM_PAGE)) {
        sim_violation("the launch is finished, but 0x%" PRIx64 " of "
                      "guest_memfd %" PRIu64 " was written, converted to "
                      "private and not populated", page << SIM_PAGE_SHIFT,
                      gmem->number);
    }
}

void sim_vm_launch_finished(SimVm *vm)
{
    guint i;

    vm->launch = SIM_LAUNCH_FINISHED;
    for (i = 0; sim_in_place() && i < vm->gmems->len; i++) {
        SimGmem *gmem = g_ptr_array_index(vm->gmems, i);
        uint64_t end = gmem->size >> SIM_PAGE_SHIFT;
        uint64_t page = 0;

        pthread_mutex_lock(&gmem->lock);
        while ((page = next_unpopulated(gmem, page, end)) < end) {
            check_not_lost(gmem, page);
            if (sim_config.scramble) {
                scramble_page(gmem->view + (page << SIM_PAGE_SHIFT));
            }
            page++;
        }
        pthread_mutex_unlock(&gmem->lock);
    }
}

/* --- conversion --- */

/* Scrambles the allocated pages of a range. */
static void scramble(SimGmem *gmem, uint64_t page, uint64_t end)
{
    while ((page = next_allocated(gmem, page, end)) < end) {
        scramble_page(gmem->view + (page++ << SIM_PAGE_SHIFT));
    }
}

/* SNP and TDX do not keep contents; before a launch is finished they do. */
static bool conversion_scrambles(const SimVm *vm, bool private)
{
    return sim_config.scramble && vm->type != KVM_X86_SW_PROTECTED_VM &&
           (!private || vm->launch == SIM_LAUNCH_FINISHED);
}

static int convert(SimGmem *gmem, struct gmem_memory_attributes2 *args)
{
    bool private = args->attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE;
    uint64_t page = args->offset >> SIM_PAGE_SHIFT;
    uint64_t pages = args->size >> SIM_PAGE_SHIFT;
    uint64_t changed, pinned;
    guint i;

    if (!sim_bitmap_any(&gmem->private, page, pages, !private)) {
        return 0;
    }
    if (private) {
        pinned = sim_pinned(gmem->number, args->offset, args->size);
        if (pinned != UINT64_MAX) {
            args->error_offset = pinned;
            return -EAGAIN;
        }
    }
    if (conversion_scrambles(gmem->vm, private)) {
        uint64_t p = page, next;

        for (; p < page + pages; p = next) {
            next = sim_bitmap_run(&gmem->private, p, page + pages);
            if (sim_bitmap_test(&gmem->private, p) != private) {
                scramble(gmem, p, next);
            }
        }
    }
    changed = sim_bitmap_fill(&gmem->private, page, pages, private);
    if (!private) {
        sim_bitmap_fill(&gmem->populated, page, pages, false);
    }
    for (i = 0; i < gmem->mappings->len; i++) {
        SimMapping *m = &g_array_index(gmem->mappings, SimMapping, i);

        if (m->offset < args->offset + args->size &&
            args->offset < m->offset + m->len) {
            map_state(gmem, m, args->offset, args->size);
        }
    }
    sim_count(private ? SIM_TO_PRIVATE : SIM_TO_SHARED, changed);
    sim_count(SIM_CONVERSIONS, 1);
    return 0;
}

int sim_gmem_convert(SimGmem *gmem, struct gmem_memory_attributes2 *args)
{
    uint64_t reserved = args->flags;
    size_t i;
    int ret;

    if (!sim_in_place()) {
        return -ENOTTY;
    }
    for (i = 0; i < G_N_ELEMENTS(args->reserved); i++) {
        reserved |= args->reserved[i];
    }
    if (reserved) {
        return sim_refuse(EINVAL, "conversion: flags or reserved not zero");
    }
    /* This is how an emulator asks whether there is conversion. */
    if (!sim_vm_has_private(gmem->vm)) {
        return -EINVAL;
    }
    if (args->attributes & ~KVM_MEMORY_ATTRIBUTE_PRIVATE) {
        return sim_refuse(EINVAL, "conversion: attributes 0x%" PRIx64,
                          args->attributes);
    }
    if (!args->size || !aligned(args->size) || !aligned(args->offset) ||
        args->offset + args->size < args->offset ||
        args->offset + args->size > gmem->size) {
        return sim_refuse(EINVAL, "conversion: 0x%" PRIx64 " bytes at 0x%"
                          PRIx64 " of 0x%" PRIx64, args->size, args->offset,
                          gmem->size);
    }
    ret = sim_fault("KVM_SET_MEMORY_ATTRIBUTES2", &args->error_offset);
    if (!ret) {
        pthread_mutex_lock(&gmem->lock);
        ret = convert(gmem, args);
        pthread_mutex_unlock(&gmem->lock);
    }
    return ret;
}

int sim_vm_set_attributes(SimVm *vm, struct kvm_memory_attributes *args)
{
    uint64_t known = sim_vm_has_private(vm) ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0;
    bool private = args->attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE;
    uint64_t changed;
    int ret;

    if (sim_in_place()) {
        return -ENOTTY;
    }
    if (args->flags || args->attributes & ~known) {
        return sim_refuse(EINVAL, "KVM_SET_MEMORY_ATTRIBUTES: flags 0x%"
                          PRIx64 ", attributes 0x%" PRIx64,
                          (uint64_t)args->flags, (uint64_t)args->attributes);
    }
    if (!args->size || !aligned(args->size) || !aligned(args->address) ||
        args->address + args->size < args->address) {
        return sim_refuse(EINVAL, "KVM_SET_MEMORY_ATTRIBUTES: 0x%" PRIx64
                          " bytes at 0x%" PRIx64, (uint64_t)args->size,
                          (uint64_t)args->address);
    }
    ret = sim_fault("KVM_SET_MEMORY_ATTRIBUTES", NULL);
    if (ret) {
        return ret;
    }
    if ((args->address + args->size) >> SIM_PAGE_SHIFT > GPA_PAGES) {
        sim_unmodelled("memory attributes beyond 52 bits");
    }
    pthread_mutex_lock(&vm->lock);
    changed = sim_bitmap_fill(&vm->private, args->address >> SIM_PAGE_SHIFT,
                              args->size >> SIM_PAGE_SHIFT, private);
    if (changed) {
        sim_count(private ? SIM_TO_PRIVATE : SIM_TO_SHARED, changed);
        sim_count(SIM_CONVERSIONS, 1);
    }
    if (sim_config.kvm) {
        sim_real_attributes_changed(vm, args->address, args->size);
    }
    pthread_mutex_unlock(&vm->lock);
    return 0;
}

/* --- memslots --- */

static uint32_t slot_as(uint32_t id)
{
    return id >> 16;
}

/* Only a VM without private memory has a second one, for SMM. */
uint32_t sim_address_spaces(const SimVm *vm)
{
    return vm && sim_vm_has_private(vm) ? 1 : 2;
}

/* kvm_arch_has_readonly_mem() */
bool sim_has_readonly(const SimVm *vm)
{
    return !vm || vm->type == KVM_X86_DEFAULT_VM ||
           vm->type == KVM_X86_SW_PROTECTED_VM;
}

/* KVM_CAP_GUEST_MEMFD */
bool sim_has_gmem(const SimVm *vm)
{
    return sim_config.generation != SIM_G0 || !vm || sim_vm_has_private(vm);
}

static SimSlot *slot_by_id(SimVm *vm, uint32_t id)
{
    guint i;

    for (i = 0; i < vm->slots->len; i++) {
        SimSlot *slot = g_ptr_array_index(vm->slots, i);

        if (slot->id == id) {
            return slot;
        }
    }
    return NULL;
}

SimSlot *sim_slot_find(SimVm *vm, uint64_t gpa)
{
    guint i;

    for (i = 0; i < vm->slots->len; i++) {
        SimSlot *slot = g_ptr_array_index(vm->slots, i);

        if (slot_as(slot->id) == 0 && gpa - slot->gpa < slot->size) {
            return slot;
        }
    }
    return NULL;
}

void sim_slot_free(SimSlot *slot)
{
    g_free(slot->dirty);
    g_free(slot);
}

static void slot_set_flags(SimSlot *slot, uint32_t flags)
{
    slot->flags = flags;
    if (!(flags & KVM_MEM_LOG_DIRTY_PAGES)) {
        g_clear_pointer(&slot->dirty, g_free);
    } else if (!slot->dirty) {
        slot->dirty = g_malloc0(ROUND_UP((slot->size >> SIM_PAGE_SHIFT) / 8 +
                                         1, 8));
    }
}

static int check_region(SimVm *vm,
                        const struct kvm_userspace_memory_region2 *r)
{
    uint32_t valid = KVM_MEM_LOG_DIRTY_PAGES;

    if (sim_has_gmem(vm)) {
        valid |= KVM_MEM_GUEST_MEMFD;
    }
    if (r->flags & KVM_MEM_GUEST_MEMFD) {
        valid &= ~KVM_MEM_LOG_DIRTY_PAGES;
    } else if (sim_has_readonly(vm)) {
        valid |= KVM_MEM_READONLY;
    }
    if (r->flags & ~valid) {
        return sim_refuse(EINVAL, "memslot 0x%x: flags 0x%x", r->slot,
                          r->flags);
    }
    if (!aligned(r->memory_size) || !aligned(r->guest_phys_addr) ||
        !aligned(r->userspace_addr) ||
        r->userspace_addr > 1ULL << 47 ||
        r->memory_size > (1ULL << 47) - r->userspace_addr ||
        (r->flags & KVM_MEM_GUEST_MEMFD &&
         (!aligned(r->guest_memfd_offset) ||
          r->guest_memfd_offset + r->memory_size < r->guest_memfd_offset)) ||
        slot_as(r->slot) >= sim_address_spaces(vm) ||
        (r->slot & 0xffff) >= MAX_SLOTS ||
        r->guest_phys_addr + r->memory_size < r->guest_phys_addr ||
        r->memory_size >> SIM_PAGE_SHIFT > MAX_SLOT_PAGES) {
        return sim_refuse(EINVAL, "memslot 0x%x: gpa 0x%" PRIx64 ", 0x%" PRIx64
                          " bytes at 0x%" PRIx64 ", file offset 0x%" PRIx64,
                          r->slot, (uint64_t)r->guest_phys_addr,
                          (uint64_t)r->memory_size,
                          (uint64_t)r->userspace_addr,
                          (uint64_t)r->guest_memfd_offset);
    }
    return 0;
}

/* Can the slot be bound to this range of the file? */
static int check_binding(SimVm *vm, SimGmem *gmem,
                         const struct kvm_userspace_memory_region2 *r)
{
    guint i;

    if (!gmem) {
        return sim_refuse(fcntl(r->guest_memfd, F_GETFD) < 0 ? EBADF : EINVAL,
                          "memslot 0x%x: descriptor %d is no guest_memfd",
                          r->slot, r->guest_memfd);
    }
    if (gmem->vm != vm ||
        r->guest_memfd_offset + r->memory_size > gmem->size) {
        return sim_refuse(EINVAL, "memslot 0x%x: past the end of the "
                          "guest_memfd, or another VM's", r->slot);
    }
    for (i = 0; i < vm->slots->len; i++) {
        SimSlot *s = g_ptr_array_index(vm->slots, i);

        if (s->gmem == gmem &&
            s->offset < r->guest_memfd_offset + r->memory_size &&
            r->guest_memfd_offset < s->offset + s->size) {
            return sim_refuse(sim_config.generation == SIM_G0 ? EINVAL
                              : EEXIST,
                              "memslot 0x%x: slot 0x%x binds 0x%" PRIx64
                              " of the file already", r->slot, s->id,
                              (uint64_t)r->guest_memfd_offset);
        }
    }
    /* Unchecked by KVM, which makes its own accesses through it. */
    if (sim_config.strict && gmem->flags & GUEST_MEMFD_FLAG_MMAP &&
        gmem->flags & GUEST_MEMFD_FLAG_INIT_SHARED) {
        if (!gmem_is_mapped(gmem, (uint8_t *)(uintptr_t)r->userspace_addr,
                            r->memory_size, r->guest_memfd_offset)) {
            sim_violation("memslot 0x%x: 0x%" PRIx64 " is not the mapping of "
                          "the file's offset 0x%" PRIx64, r->slot,
                          (uint64_t)r->userspace_addr,
                          (uint64_t)r->guest_memfd_offset);
        }
    }
    return 0;
}

/* Kernels allow it, but the guest would have memory of a VM that is gone. */
static void check_plain(SimVm *vm,
                        const struct kvm_userspace_memory_region2 *r)
{
    uint64_t offset;
    SimGmem *gmem = sim_gmem_at((void *)(uintptr_t)r->userspace_addr, &offset);

    if (gmem && gmem->vm != vm) {
        sim_violation("memslot 0x%x: at 0x%" PRIx64 " is a guest_memfd of "
                      "another VM", r->slot, (uint64_t)r->userspace_addr);
    }
    if (gmem) {
        sim_gmem_unref(gmem);
    }
}

static bool slot_overlaps(SimVm *vm,
                          const struct kvm_userspace_memory_region2 *r)
{
    guint i;

    for (i = 0; i < vm->slots->len; i++) {
        SimSlot *s = g_ptr_array_index(vm->slots, i);

        if (s->id != r->slot && slot_as(s->id) == slot_as(r->slot) &&
            s->gpa < r->guest_phys_addr + r->memory_size &&
            r->guest_phys_addr < s->gpa + s->size) {
            return true;
        }
    }
    return false;
}

static int set_region(SimVm *vm, const struct kvm_userspace_memory_region2 *r,
                      SimGmem *gmem)
{
    SimSlot *slot = slot_by_id(vm, r->slot);
    int ret;

    if (!r->memory_size) {
        if (!slot) {
            return sim_refuse(EINVAL, "memslot 0x%x: deleted, but not there",
                              r->slot);
        }
        g_ptr_array_remove(vm->slots, slot);
        return 0;
    }
    if (slot && (r->flags & KVM_MEM_GUEST_MEMFD ||
                 (uint8_t *)(uintptr_t)r->userspace_addr != slot->hva ||
                 r->memory_size != slot->size ||
                 (r->flags ^ slot->flags) & (KVM_MEM_READONLY |
                                             KVM_MEM_GUEST_MEMFD))) {
        return sim_refuse(EINVAL, "memslot 0x%x: changed in what cannot be "
                          "changed", r->slot);
    }
    if ((!slot || slot->gpa != r->guest_phys_addr) && slot_overlaps(vm, r)) {
        return sim_refuse(EEXIST, "memslot 0x%x: gpa 0x%" PRIx64 ", 0x%" PRIx64
                          " bytes: another slot is there", r->slot,
                          (uint64_t)r->guest_phys_addr,
                          (uint64_t)r->memory_size);
    }
    if (slot) {
        slot->gpa = r->guest_phys_addr;
        slot_set_flags(slot, r->flags);
        return 0;
    }

    if (r->flags & KVM_MEM_GUEST_MEMFD) {
        ret = check_binding(vm, gmem, r);
        if (ret) {
            return ret;
        }
    }
    slot = g_new0(SimSlot, 1);
    slot->id = r->slot;
    slot->gpa = r->guest_phys_addr;
    slot->size = r->memory_size;
    slot->hva = (uint8_t *)(uintptr_t)r->userspace_addr;
    if (r->flags & KVM_MEM_GUEST_MEMFD) {
        slot->gmem = gmem;
        slot->offset = r->guest_memfd_offset;
    }
    slot_set_flags(slot, r->flags);
    g_ptr_array_add(vm->slots, slot);
    return 0;
}

int sim_set_region(SimVm *vm, const struct kvm_userspace_memory_region2 *r)
{
    SimFile *file = NULL;
    SimGmem *gmem = NULL;
    int ret = sim_fault("KVM_SET_USER_MEMORY_REGION", NULL);

    if (!ret) {
        ret = check_region(vm, r);
    }
    if (ret) {
        return ret;
    }
    if (r->memory_size && r->flags & KVM_MEM_GUEST_MEMFD) {
        gmem = sim_file_get(r->guest_memfd, SIM_GMEM, &file);
    } else if (sim_config.strict && r->memory_size) {
        check_plain(vm, r);
    }
    pthread_mutex_lock(&vm->lock);
    ret = set_region(vm, r, gmem);
    if (!ret && sim_config.kvm) {
        ret = sim_real_set_region(vm, slot_by_id(vm, r->slot), r);
    }
    pthread_mutex_unlock(&vm->lock);
    if (gmem) {
        sim_file_put(file);
    }
    return ret;
}

int sim_get_dirty_log(SimVm *vm, const struct kvm_dirty_log *log)
{
    SimSlot *slot;
    size_t bytes;
    int ret = -ENOENT;

    pthread_mutex_lock(&vm->lock);
    slot = slot_by_id(vm, log->slot);
    if (slot && slot->dirty) {
        bytes = ROUND_UP(slot->size >> SIM_PAGE_SHIFT, 64) / 8;
        ret = sim_copy_to_user(log->dirty_bitmap, slot->dirty, bytes);
        memset(slot->dirty, 0, bytes);
    }
    pthread_mutex_unlock(&vm->lock);
    return ret;
}

/* --- what the guest sees --- */

bool sim_gpa_private(SimVm *vm, uint64_t gpa)
{
    SimSlot *slot;
    uint64_t offset;
    bool private;

    if (!sim_in_place()) {
        return sim_bitmap_test(&vm->private, gpa >> SIM_PAGE_SHIFT);
    }
    slot = sim_slot_find(vm, gpa);
    if (!slot || !slot->gmem) {
        return false;
    }
    offset = slot->offset + (gpa - slot->gpa);
    pthread_mutex_lock(&slot->gmem->lock);
    private = sim_bitmap_test(&slot->gmem->private, offset >> SIM_PAGE_SHIFT);
    pthread_mutex_unlock(&slot->gmem->lock);
    return private;
}

bool sim_state_differs(SimVm *vm, uint64_t gpa, uint64_t pages, bool private,
                       uint64_t *where)
{
    uint64_t end = pages > (UINT64_MAX - gpa) >> SIM_PAGE_SHIFT
                   ? UINT64_MAX : gpa + (pages << SIM_PAGE_SHIFT);
    bool differs = false;
    guint i;

    for (i = 0; i < vm->slots->len && !differs; i++) {
        SimSlot *slot = g_ptr_array_index(vm->slots, i);
        uint64_t first = MAX(gpa, slot->gpa);
        uint64_t behind = MIN(end, slot->gpa + slot->size);
        uint64_t page, in_bitmap;
        const SimBitmap *state;

        if (slot_as(slot->id) || !slot->gmem || first >= behind) {
            continue;
        }
        pthread_mutex_lock(&slot->gmem->lock);
        state = sim_in_place() ? &slot->gmem->private : &vm->private;
        in_bitmap = sim_in_place() ? slot->offset - slot->gpa : 0;
        page = (first + in_bitmap) >> SIM_PAGE_SHIFT;
        behind = (behind - 1 + in_bitmap) / SIM_PAGE + 1;
        if (sim_bitmap_test(state, page) == private) {
            page = sim_bitmap_run(state, page, behind);
        }
        differs = page < behind;
        *where = (page << SIM_PAGE_SHIFT) - in_bitmap;
        pthread_mutex_unlock(&slot->gmem->lock);
    }
    return differs;
}

/* Do guest accesses to shared pages go to the file, or to the mapping? */
static bool serves_shared(const SimSlot *slot)
{
    return slot->gmem && (sim_in_place() ||
                          slot->gmem->flags & GUEST_MEMFD_FLAG_MMAP);
}

uint8_t *sim_gpa_page(SimVm *vm, uint64_t gpa, bool private)
{
    SimSlot *slot = sim_slot_find(vm, gpa);
    uint64_t offset;

    if (!slot) {
        return NULL;
    }
    offset = (gpa - slot->gpa) & ~(SIM_PAGE - 1);
    if (private || serves_shared(slot)) {
        return slot->gmem ? slot->gmem->view + slot->offset + offset : NULL;
    }
    return slot->hva + offset;
}

int sim_guest_access(SimVm *vm, uint64_t gpa, void *data, size_t len,
                     bool write)
{
    bool private = sim_gpa_private(vm, gpa);
    SimSlot *slot = sim_slot_find(vm, gpa);
    uint8_t *page = sim_gpa_page(vm, gpa, private);
    uint64_t in_page = gpa % SIM_PAGE;

    g_assert(in_page + len <= SIM_PAGE);
    if (!slot || (write && slot->flags & KVM_MEM_READONLY)) {
        return -ENOENT;
    }
    if (!page || (slot->flags & KVM_MEM_GUEST_MEMFD && !slot->gmem)) {
        return -EFAULT;
    }
    if (write && slot->dirty) {
        uint64_t n = (gpa - slot->gpa) >> SIM_PAGE_SHIFT;

        slot->dirty[n / 8] |= 1 << n % 8;
    }
    if (private || serves_shared(slot)) {
        /* The guest's own memory: no conversion in the midst of it. */
        pthread_mutex_lock(&slot->gmem->lock);
        memcpy(write ? page + in_page : data, write ? data : page + in_page,
               len);
        pthread_mutex_unlock(&slot->gmem->lock);
        return 0;
    }
    return write ? sim_copy_to_user(page + in_page, data, len)
                 : sim_copy_from_user(data, page + in_page, len);
}

int sim_populate(SimVm *vm, uint64_t gpa, const void *source,
                 int (*take)(void *opaque, uint64_t gpa, uint8_t *page),
                 void *opaque)
{
    SimSlot *slot = sim_slot_find(vm, gpa);
    SimGmem *gmem;
    uint64_t page;
    bool private;
    int ret;

    if (!slot || !(slot->flags & KVM_MEM_GUEST_MEMFD)) {
        return sim_refuse(EINVAL, "populate: gpa 0x%" PRIx64 " has no slot "
                          "with a guest_memfd", gpa);
    }
    gmem = slot->gmem;
    if (!gmem) {
        return sim_refuse(EFAULT, "populate: gpa 0x%" PRIx64 ": the "
                          "guest_memfd is closed", gpa);
    }
    page = (slot->offset + (gpa - slot->gpa)) >> SIM_PAGE_SHIFT;
    pthread_mutex_lock(&gmem->lock);
    private = sim_in_place()
              ? sim_bitmap_test(&gmem->private, page)
              : sim_bitmap_test(&vm->private, gpa >> SIM_PAGE_SHIFT);
    if (!private) {
        ret = sim_refuse(EINVAL, "populate: gpa 0x%" PRIx64 " is shared", gpa);
    } else if (sim_bitmap_test(&gmem->populated, page)) {
        ret = sim_refuse(EEXIST, "populate: gpa 0x%" PRIx64 " is populated "
                         "already", gpa);
    } else {
        uint8_t *contents = gmem->view + (page << SIM_PAGE_SHIFT);

        ret = source ? sim_copy_from_user(contents, source, SIM_PAGE) : 0;
        if (!ret) {
            ret = take(opaque, gpa, contents);
        }
        if (!ret) {
            sim_bitmap_fill(&gmem->populated, page, 1, true);
        }
    }
    pthread_mutex_unlock(&gmem->lock);
    return ret;
}

/* --- how much memory there is --- */

/* Is a range of addresses, as /proc has it, in a slot's own memory? */
static bool in_other_memory(SimVm *vm, uint64_t start, uint64_t end)
{
    guint i;

    for (i = 0; i < vm->slots->len; i++) {
        SimSlot *slot = g_ptr_array_index(vm->slots, i);
        uint64_t hva = (uintptr_t)slot->hva;

        if (start < hva + slot->size && hva < end) {
            return true;
        }
    }
    return false;
}

void sim_vm_sample_memory(SimVm *vm)
{
    uint64_t other = 0;
    bool counts = false;
    char line[512];
    FILE *smaps;

    smaps = fopen("/proc/self/smaps", "r");
    pthread_mutex_lock(&vm->lock);
    while (smaps && fgets(line, sizeof(line), smaps)) {
        uint64_t start, end, kib;

        if (sscanf(line, "%" SCNx64 "-%" SCNx64 " ", &start, &end) == 2) {
            counts = in_other_memory(vm, start, end) &&
                     !strstr(line, "guest_memfd") &&
                     !strstr(line, "[kvm-gmem]");
        } else if (counts && sscanf(line, "Rss: %" SCNu64, &kib) == 1) {
            other += kib << 10;
        }
    }
    pthread_mutex_unlock(&vm->lock);
    if (smaps) {
        fclose(smaps);
    }
    sim_report_memory(all_allocated(), other);
}

void sim_vm_sample_launch(SimVm *vm)
{
    static bool launched;               /* some VM; atomic */
    bool finished = vm->launch == SIM_LAUNCH_FINISHED;

    if (finished || !__atomic_load_n(&launched, __ATOMIC_RELAXED)) {
        sim_vm_sample_memory(vm);
    }
    if (finished) {
        __atomic_store_n(&launched, true, __ATOMIC_RELAXED);
    }
}

void sim_sample_memory(void)
{
    g_autoptr(GPtrArray) vms = g_ptr_array_new();
    guint i;

    pthread_mutex_lock(&gmems_lock);
    for (i = 0; gmems && i < gmems->len; i++) {
        SimGmem *gmem = g_ptr_array_index(gmems, i);

        if (!g_ptr_array_find(vms, gmem->vm, NULL)) {
            g_ptr_array_add(vms, sim_vm_ref(gmem->vm));
        }
    }
    pthread_mutex_unlock(&gmems_lock);
    for (i = 0; i < vms->len; i++) {
        sim_vm_sample_memory(g_ptr_array_index(vms, i));
        sim_vm_unref(g_ptr_array_index(vms, i));
    }
}
