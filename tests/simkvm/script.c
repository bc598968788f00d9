/*
 * simkvm: vCPUs that do what a script says
 *
 * A script is the guest: each of its lines is an access, a request or a
 * check, as docs/testing.md lists them.  KVM_RUN carries lines out until one
 * has to leave to the emulator; on its next entry it checks the emulator's
 * answer.  A result that the script does not expect is a violation.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include "simkvm.h"

#define PIO_OFFSET SIM_PAGE             /* of port I/O data in kvm_run */
#define MAX_NESTING 8

typedef enum Verb {
    MAP_GPA, FAULT, READ, WRITE, FILL, CHECK, IN, OUT, PRINT, BARRIER, REPEAT,
    END, HALT, SHUTDOWN, RANDOM, STATE, MMIO_READ, MMIO_WRITE, RUN_ERROR,
    PIN, HOSTILE, NEW_VM,
} Verb;

typedef struct Op {
    Verb verb;
    uint64_t a, b, c;
    bool private;
    bool contended;             /* others may change it back at once */
    uint64_t bits;              /* more attributes, or flags */
    uint64_t times;             /* UINT64_MAX: for ever; 0: as long as needed */
    int error;                  /* of KVM_RUN; 0: what it usually is */
    int64_t expect;
    char *text;
} Op;

struct SimScript {
    GArray *ops;                /* Op, for this vCPU; not its own */
    guint at;                   /* the next one */
    bool left;                  /* the one before has left to the emulator */
    uint64_t vm;                /* that NEW_VM, or its begin, found last */
    uint64_t step;              /* within an op that leaves several times */
    uint64_t faults;            /* memory faults for the same page */
    struct {
        guint begin;
        uint64_t left;
    } loop[MAX_NESTING];
    int loops;
    int wake;                   /* an eventfd: others have come to a barrier */
    uint64_t barriers;          /* passed so far */
    uint64_t random;            /* state of the generator */
    Op drawn;                   /* what RANDOM or HOSTILE has drawn */
    SimHostile *hostile;
    uint64_t asked;             /* requests of HOSTILE, in this batch */
    uint64_t batches;           /* that are done */
    enum { ASK, MEET, TALK, GO_ON } phase;      /* of HOSTILE */
};

static GHashTable *scripts;             /* vCPU, or -1 -> GArray of Op */

static pthread_mutex_t left_lock = PTHREAD_MUTEX_INITIALIZER;
static GHashTable *left;                /* vCPU -> SimScript of one gone */

/* --- parsing --- */

static const char *word(GPtrArray *words, guint n, const char *usage)
{
    if (n >= words->len) {
        sim_mistake("%s", usage);
    }
    return g_ptr_array_index(words, n);
}

static uint64_t number(GPtrArray *words, guint n, const char *usage)
{
    return sim_number(word(words, n, usage));
}

static bool private(GPtrArray *words, guint n, const char *usage)
{
    return sim_choice(word(words, n, usage), "private", "shared");
}

/* The value of "name=", by default @value; -1 is "any". */
static int64_t expected(GPtrArray *words, const char *name, int64_t value)
{
    const char *option = sim_option(words, name);

    if (!option) {
        return value;
    }
    if (!strcmp(option, "any")) {
        return -1;
    }
    return option[0] == 'E' ? sim_errno(option) : (int64_t)sim_number(option);
}

static const struct {
    const char *name;
    Verb verb;
    const char *usage;
    guint words;
} verbs[] = {
    { "map-gpa", MAP_GPA,
      "map-gpa GPA PAGES private|shared [contended] "
      "[ret=0|EINVAL|EAGAIN|any] [attributes=BITS]", 3 },
    { "fault", FAULT, "fault GPA SIZE private|shared [stale] "
      "[times=N|forever] [flags=BITS] [errno=NAME]", 3 },
    { "mmio-read", MMIO_READ, "mmio-read GPA SIZE [expect=VALUE]", 2 },
    { "mmio-write", MMIO_WRITE, "mmio-write GPA SIZE VALUE", 3 },
    { "pin", PIN, "pin GPA PAGES [times=N|forever]", 2 },
    { "run-error", RUN_ERROR, "run-error ERRNO [times=N|forever]", 1 },
    { "read", READ, "read GPA SIZE [expect=VALUE]", 2 },
    { "write", WRITE, "write GPA SIZE VALUE", 3 },
    { "fill", FILL, "fill GPA PAGES SEED", 3 },
    { "check", CHECK, "check GPA PAGES SEED", 3 },
    { "in", IN, "in PORT SIZE [expect=VALUE]", 2 },
    { "out", OUT, "out PORT SIZE VALUE", 3 },
    { "print", PRINT, "print WORD...", 0 },
    { "barrier", BARRIER, "barrier", 0 },
    { "repeat", REPEAT, "repeat TIMES", 1 },
    { "end", END, "end", 0 },
    { "halt", HALT, "halt", 0 },
    { "shutdown", SHUTDOWN, "shutdown", 0 },
    { "random", RANDOM, "random SEED COUNT GPA PAGES", 4 },
    { "state", STATE, "state GPA PAGES private|shared", 3 },
    { "hostile", HOSTILE, "hostile SEED REQUESTS BATCHES", 3 },
    { "new-vm", NEW_VM, "new-vm", 0 },
};

/* Takes the fourth word out if it is @flag. */
static bool flagged(GPtrArray *words, const char *flag)
{
    bool is = words->len == 4 && !strcmp(g_ptr_array_index(words, 3), flag);

    if (is) {
        g_ptr_array_set_size(words, 3);
    }
    return is;
}

/* Options that a few verbs have. */
static void add_options(Op *op, GPtrArray *words)
{
    const char *bits = NULL, *times = NULL, *error = NULL;

    if (op->verb == MAP_GPA) {
        bits = sim_option(words, "attributes");
        op->contended = flagged(words, "contended");
    } else if (op->verb == FAULT) {
        bits = sim_option(words, "flags");
        times = sim_option(words, "times");
        error = sim_option(words, "errno");
        op->times = flagged(words, "stale");
    } else if (op->verb == PIN) {
        times = sim_option(words, "times");
        op->times = 1;
    } else if (op->verb == RUN_ERROR) {
        times = sim_option(words, "times");
        op->times = 1;
        if (words->len == 1) {
            op->error = sim_errno(g_ptr_array_index(words, 0));
            g_ptr_array_index(words, 0) = (char *)"0";
        }
    }
    op->bits = bits ? sim_number(bits) : 0;
    op->times = times ? sim_number(times) : op->times;
    op->error = error ? sim_errno(error) : op->error;
}

void sim_script_add(int id, const char *verb, GPtrArray *words)
{
    const char *usage = NULL;
    GArray *ops;
    Op op = {};
    size_t i;

    if (!scripts) {
        scripts = g_hash_table_new(NULL, NULL);
    }
    ops = g_hash_table_lookup(scripts, GINT_TO_POINTER(id));
    if (!ops) {
        ops = g_array_new(FALSE, TRUE, sizeof(Op));
        g_hash_table_insert(scripts, GINT_TO_POINTER(id), ops);
    }

    for (i = 0; i < G_N_ELEMENTS(verbs); i++) {
        if (!strcmp(verb, verbs[i].name)) {
            op.verb = verbs[i].verb;
            usage = verbs[i].usage;
            break;
        }
    }
    if (!usage) {
        sim_mistake("a vCPU cannot '%s'", verb);
    }
    op.expect = expected(words, op.verb == MAP_GPA ? "ret" : "expect",
                         op.verb == MAP_GPA ? 0 : -1);
    add_options(&op, words);
    if (op.verb == PRINT) {
        g_ptr_array_add(words, NULL);
        op.text = g_strjoinv(" ", (char **)words->pdata);
        g_array_append_val(ops, op);
        return;
    }
    if (words->len != verbs[i].words) {
        sim_mistake("%s", usage);
    }
    op.a = words->len > 0 ? number(words, 0, usage) : 0;
    op.b = words->len > 1 ? number(words, 1, usage) : 0;
    if (op.verb == MAP_GPA || op.verb == FAULT || op.verb == STATE) {
        op.private = private(words, 2, usage);
    } else if (words->len > 2) {
        op.c = number(words, 2, usage);
    }
    if (op.verb == RANDOM) {
        op.expect = number(words, 3, usage);    /* pages */
    }
    if ((op.verb == READ || op.verb == WRITE || op.verb == IN ||
         op.verb == OUT || op.verb == MMIO_READ || op.verb == MMIO_WRITE) &&
        op.b != 1 && op.b != 2 && op.b != 4 &&
        op.b != 8) {
        sim_mistake("%s: a size of 1, 2, 4 or 8 bytes", usage);
    }
    g_array_append_val(ops, op);
}

static SimScript *script_new(const SimVcpu *vcpu)
{
    SimScript *s = g_new0(SimScript, 1);
    int id = vcpu->id;

    s->vm = vcpu->vm->number;
    s->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    g_assert(s->wake >= 0);
    if (scripts) {
        s->ops = g_hash_table_lookup(scripts, GINT_TO_POINTER(id));
        if (!s->ops) {
            s->ops = g_hash_table_lookup(scripts, GINT_TO_POINTER(-1));
        }
    }
    return s;
}

/*
 * Goes on with the script of a vCPU that is gone.  Its last request will not be
 * answered any more, so it counts as done; but an access that waits for pages
 * to be in some state is made again.
 */
static void script_go_on(SimScript *s, SimVcpu *vcpu)
{
    const Op *op = s->left ? &g_array_index(s->ops, Op, s->at) : NULL;

    if (s->hostile) {
        sim_hostile_go_on(s->hostile, vcpu);
    }
    s->faults = 0;
    s->left = false;
    if (!op || op->verb == RANDOM || op->verb == HOSTILE ||
        (op->verb == FAULT && !op->times)) {
        return;
    }
    if (op->verb == PRINT || op->verb == FAULT || op->verb == RUN_ERROR) {
        s->step++;
    } else {
        s->at++;
        s->step = 0;
    }
}

static SimScript *script_of(SimVcpu *vcpu)
{
    SimScript *s = __atomic_load_n(&vcpu->script, __ATOMIC_ACQUIRE);

    if (s) {
        return s;
    }
    pthread_mutex_lock(&left_lock);
    s = left ? g_hash_table_lookup(left, GINT_TO_POINTER(vcpu->id)) : NULL;
    if (s) {
        g_hash_table_remove(left, GINT_TO_POINTER(vcpu->id));
    }
    pthread_mutex_unlock(&left_lock);
    if (s) {
        script_go_on(s, vcpu);
    } else {
        s = script_new(vcpu);
    }
    __atomic_store_n(&vcpu->script, s, __ATOMIC_RELEASE);
    return s;
}

void sim_script_leave(SimVcpu *vcpu)
{
    SimScript *old;

    if (!vcpu->script) {
        return;
    }
    pthread_mutex_lock(&left_lock);
    if (!left) {
        left = g_hash_table_new(NULL, NULL);
    }
    old = g_hash_table_lookup(left, GINT_TO_POINTER(vcpu->id));
    g_hash_table_insert(left, GINT_TO_POINTER(vcpu->id), vcpu->script);
    pthread_mutex_unlock(&left_lock);
    if (old) {
        sim_real_close(old->wake);
        g_free(old);
    }
}

/* --- waiting --- */

/*
 * Wait until the emulator wants the vCPU back, or until @fd can be read, if
 * that is not -1.  The emulator sets immediate_exit in a signal handler; with
 * signals blocked, none comes between the check and the wait.
 */
static int wait_for_signal(SimVcpu *vcpu, int fd)
{
    struct pollfd poll = { .fd = fd, .events = POLLIN };
    sigset_t all, old;
    int n = -1;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    if (!__atomic_load_n(&vcpu->run->immediate_exit, __ATOMIC_ACQUIRE)) {
        n = ppoll(&poll, 1, NULL, &old);
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return n > 0 ? -EAGAIN : -EINTR;
}

/* --- leaving to the emulator --- */

static int leave(SimVcpu *vcpu, uint32_t reason, const char *name)
{
    vcpu->script->left = true;
    return sim_exit(vcpu, reason, name);
}

static int leave_hypercall(SimVcpu *vcpu, const Op *op)
{
    vcpu->script->left = true;
    sim_exit_hypercall(vcpu, op->a, op->b, op->private);
    vcpu->run->hypercall.args[2] |= op->bits;
    return 0;
}

static int leave_fault(SimVcpu *vcpu, const Op *op)
{
    vcpu->script->left = true;
    sim_exit_memory_fault(vcpu, op->a, op->b, op->private);
    vcpu->run->memory_fault.flags |= op->bits;
    return -(op->error ?: EFAULT);
}

/* KVM_RUN fails, and there is no exit that would say why. */
static int leave_error(SimVcpu *vcpu, int error)
{
    vcpu->script->left = true;
    vcpu->run->exit_reason = KVM_EXIT_UNKNOWN;
    sim_log("KVM_RUN", -error, "\"vcpu\": %d", vcpu->id);
    return -error;
}

static int leave_io(SimVcpu *vcpu, bool write, uint16_t port, uint8_t size,
                    uint64_t value)
{
    struct kvm_run *run = vcpu->run;

    run->io.direction = write ? KVM_EXIT_IO_OUT : KVM_EXIT_IO_IN;
    run->io.size = size;
    run->io.port = port;
    run->io.count = 1;
    run->io.data_offset = PIO_OFFSET;
    memcpy((uint8_t *)run + PIO_OFFSET, &value, size);
    return leave(vcpu, KVM_EXIT_IO, "KVM_EXIT_IO");
}

static int leave_mmio(SimVcpu *vcpu, bool write, uint64_t gpa, uint32_t size,
                      uint64_t value)
{
    struct kvm_run *run = vcpu->run;

    run->mmio.phys_addr = gpa;
    run->mmio.len = size;
    run->mmio.is_write = write;
    memcpy(run->mmio.data, &value, sizeof(run->mmio.data));
    return leave(vcpu, KVM_EXIT_MMIO, "KVM_EXIT_MMIO");
}

/* --- checks --- */

static void check_value(const char *what, uint64_t where, const Op *op,
                        uint64_t value)
{
    if (op->expect >= 0 && value != (uint64_t)op->expect) {
        sim_violation("%s 0x%" PRIx64 ": 0x%" PRIx64 ", expected 0x%" PRIx64,
                      what, where, value, (uint64_t)op->expect);
    }
}

/* Every page that has a guest_memfd is in that state. */
static void check_state(SimVm *vm, uint64_t gpa, uint64_t pages, bool private)
{
    uint64_t where;

    pthread_mutex_lock(&vm->lock);
    if (sim_state_differs(vm, gpa, pages, private, &where)) {
        sim_violation("gpa 0x%" PRIx64 " is %s", where,
                      private ? "shared" : "private");
    }
    pthread_mutex_unlock(&vm->lock);
}

static void check_hypercall(SimVcpu *vcpu, const Op *op)
{
    uint64_t ret = sim_hypercall_answer(vcpu);

    if (op->expect >= 0 && ret != (uint64_t)op->expect) {
        sim_violation("conversion of %" PRIu64 " pages at 0x%" PRIx64 " to %s:"
                      " the guest gets %" PRIu64 ", expected %" PRId64,
                      op->b, op->a, op->private ? "private" : "shared", ret,
                      op->expect);
    }
}

/* --- one op: each returns SIM_PASS when it is done --- */

static int run_map_gpa(SimVcpu *vcpu, const Op *op, bool back)
{
    if (!back) {
        if (!(vcpu->vm->hypercalls & 1ULL << KVM_HC_MAP_GPA_RANGE)) {
            sim_violation("KVM_CAP_EXIT_HYPERCALL is not enabled");
        }
        return leave_hypercall(vcpu, op);
    }
    check_hypercall(vcpu, op);
    if (!vcpu->run->hypercall.ret && !op->contended && op->expect == 0) {
        check_state(vcpu->vm, op->a, op->b, op->private);
    }
    return SIM_PASS;
}

/* An access by a guest that takes the pages to be in some state */
static int run_fault(SimVcpu *vcpu, const Op *op, bool back)
{
    SimScript *s = vcpu->script;
    SimVm *vm = vcpu->vm;
    uint64_t gpa;
    bool differs = false;

    if (op->times) {
        s->step += back;
        return s->step == op->times ? SIM_PASS : leave_fault(vcpu, op);
    }
    pthread_mutex_lock(&vm->lock);
    for (gpa = op->a; gpa < op->a + op->b && !differs; gpa += SIM_PAGE) {
        differs = sim_gpa_private(vm, gpa) != op->private;
    }
    pthread_mutex_unlock(&vm->lock);
    if (!differs) {
        s->faults = 0;
        return SIM_PASS;
    }
    sim_check_progress(++s->faults, op->a, op->private);
    return leave_fault(vcpu, op);
}

static int run_access(SimVcpu *vcpu, const Op *op, bool back)
{
    bool write = op->verb == WRITE || op->verb == MMIO_WRITE;
    bool emulated = op->verb == MMIO_READ || op->verb == MMIO_WRITE;
    uint64_t value = write ? op->c : 0;
    SimSlot *slot;
    int ret;

    if (back && vcpu->run->exit_reason == KVM_EXIT_MMIO) {
        if (!write) {
            memcpy(&value, vcpu->run->mmio.data, op->b);
            check_value("read of gpa", op->a, op, value);
        }
        return SIM_PASS;
    }
    if (emulated) {
        return leave_mmio(vcpu, write, op->a, op->b, value);
    }
    if (write && sim_ioeventfd_signal(vcpu->vm, false, op->a, op->b, value)) {
        return SIM_PASS;
    }
    pthread_mutex_lock(&vcpu->vm->lock);
    ret = sim_guest_access(vcpu->vm, op->a, &value, op->b, write);
    slot = ret ? sim_slot_find(vcpu->vm, op->a) : NULL;
    pthread_mutex_unlock(&vcpu->vm->lock);
    if (ret == -EFAULT && !(slot->flags & KVM_MEM_GUEST_MEMFD)) {
        /* Private memory, through the mapping. */
        return leave_error(vcpu, EFAULT);
    }
    if (ret == -ENOENT) {
        return leave_mmio(vcpu, write, op->a, op->b, value);
    }
    if (ret) {
        sim_violation("gpa 0x%" PRIx64 " has no memory: a bound slot's file "
                      "is closed, or its mapping gone", op->a);
    }
    if (!write) {
        check_value("read of gpa", op->a, op, value);
    }
    return SIM_PASS;
}

static uint64_t pattern(uint64_t seed, uint64_t gpa)
{
    uint64_t x = (seed + 1) * 0x9e3779b97f4a7c15ULL ^ gpa;

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
    return x ^ x >> 27;
}

static int run_pattern(SimVcpu *vcpu, const Op *op)
{
    SimVm *vm = vcpu->vm;
    uint64_t page[SIM_PAGE / 8], i, n;

    for (n = 0; n < op->b; n++) {
        uint64_t gpa = op->a + n * SIM_PAGE;
        int ret;

        for (i = 0; i < G_N_ELEMENTS(page); i++) {
            page[i] = pattern(op->c, gpa + i * 8);
        }
        pthread_mutex_lock(&vm->lock);
        ret = sim_guest_access(vm, gpa, page, SIM_PAGE, op->verb == FILL);
        pthread_mutex_unlock(&vm->lock);
        if (ret) {
            sim_violation("gpa 0x%" PRIx64 " is not memory", gpa);
        }
        for (i = 0; i < G_N_ELEMENTS(page); i++) {
            if (page[i] != pattern(op->c, gpa + i * 8)) {
                sim_violation("gpa 0x%" PRIx64 ": 0x%" PRIx64 ", expected 0x%"
                              PRIx64, gpa + i * 8, page[i],
                              pattern(op->c, gpa + i * 8));
            }
        }
    }
    return SIM_PASS;
}

static int run_io(SimVcpu *vcpu, const Op *op, bool back)
{
    uint64_t value = 0;

    if (!back) {
        if (op->verb == OUT && sim_ioeventfd_signal(vcpu->vm, true, op->a,
                                                    op->b, op->c)) {
            return SIM_PASS;
        }
        return leave_io(vcpu, op->verb == OUT, op->a, op->b, op->c);
    }
    if (op->verb == IN) {
        memcpy(&value, (uint8_t *)vcpu->run + PIO_OFFSET, op->b);
        check_value("port", op->a, op, value);
    }
    return SIM_PASS;
}

/* Pins pages of one slot from now on. */
static int run_pin(SimVcpu *vcpu, const Op *op)
{
    SimVm *vm = vcpu->vm;
    SimPin pin = { .size = op->b * SIM_PAGE, .times = op->times };
    SimSlot *slot;

    pthread_mutex_lock(&vm->lock);
    slot = sim_slot_find(vm, op->a);
    if (!slot || !slot->gmem) {
        sim_violation("pin: gpa 0x%" PRIx64 " has no guest_memfd", op->a);
    }
    pin.file = slot->gmem->number;
    pin.offset = slot->offset + (op->a - slot->gpa);
    pthread_mutex_unlock(&vm->lock);
    sim_pin(&pin);
    return SIM_PASS;
}

/* KVM_RUN fails, so many times. */
static int run_error(SimVcpu *vcpu, const Op *op, bool back)
{
    vcpu->script->step += back;
    return vcpu->script->step == op->times ? SIM_PASS
           : leave_error(vcpu, op->error);
}

/* Waits for another VM in the place of the last one. */
static int run_new_vm(SimVcpu *vcpu)
{
    SimScript *s = vcpu->script;

    if (s->vm == vcpu->vm->number) {
        return wait_for_signal(vcpu, -1);
    }
    s->vm = vcpu->vm->number;
    return SIM_PASS;
}

/* Prints on the debug console, one byte per exit. */
static int run_print(SimVcpu *vcpu, const Op *op, bool back)
{
    uint64_t n = vcpu->script->step += back;
    size_t len = strlen(op->text);

    if (n > len) {
        return SIM_PASS;
    }
    return leave_io(vcpu, true, 0x402, 1, n < len ? op->text[n] : '\n');
}

/*
 * All vCPUs whose scripts have barriers meet.  The last one to come calls
 * @meet, unless NULL, while all others wait.
 */
static int run_barrier(SimVcpu *vcpu, void (*meet)(SimVcpu *vcpu))
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static uint64_t arrived, open;
    SimScript *s = vcpu->script;
    GPtrArray *vcpus = vcpu->vm->vcpus;
    eventfd_t n;
    bool pass;
    guint i;

    /* Events up to here show in what is read below. */
    eventfd_read(s->wake, &n);
    pthread_mutex_lock(&lock);
    if (!s->step) {
        s->step = 1;
        if (++arrived % vcpus->len == 0) {
            if (meet) {
                meet(vcpu);
            }
            open = arrived;
            for (i = 0; i < vcpus->len; i++) {
                SimVcpu *other = g_ptr_array_index(vcpus, i);
                SimScript *its = __atomic_load_n(&other->script,
                                                 __ATOMIC_ACQUIRE);

                /* A vCPU that has not run yet reads @open before it waits. */
                if (its) {
                    eventfd_write(its->wake, 1);
                }
            }
        }
    }
    pass = open >= (s->barriers + 1) * vcpus->len;
    pthread_mutex_unlock(&lock);
    if (!pass) {
        return wait_for_signal(vcpu, s->wake);
    }
    s->barriers++;
    return SIM_PASS;
}

/* xorshift: never 0 */
uint64_t sim_draw(uint64_t *state, uint64_t below)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state % below;
}

static uint64_t draw(SimScript *s, uint64_t below)
{
    return sim_draw(&s->random, below);
}

/* Requests for conversion within the range, of 1 page up to all of it. */
static int run_random(SimVcpu *vcpu, const Op *op, bool back)
{
    SimScript *s = vcpu->script;
    uint64_t pages = op->expect;
    /* Other guests take a page for what it is, and have no such faults. */
    bool faults = vcpu->vm->type != KVM_X86_SW_PROTECTED_VM;

    if (!s->step) {
        s->random = (op->a + 1) * 0x9e3779b97f4a7c15ULL + vcpu->id;
    }
    if (back) {
        int ret = s->drawn.verb == MAP_GPA
                  ? run_map_gpa(vcpu, &s->drawn, true)
                  : run_fault(vcpu, &s->drawn, true);

        if (ret != SIM_PASS) {
            return ret;
        }
        if (vcpu->run->immediate_exit) {
            return -EINTR;
        }
    }
    while (s->step < op->b) {
        uint64_t first = draw(s, pages);
        int ret;

        s->step++;
        s->drawn = (Op) {
            .verb = draw(s, 4) || !faults ? MAP_GPA : FAULT,
            .a = op->c + first * SIM_PAGE,
            .b = 1 + draw(s, draw(s, 4) ? MIN(16, pages - first)
                                        : pages - first),
            .private = draw(s, 2),
            .expect = -1,
        };
        if (s->drawn.verb == FAULT) {
            s->drawn.b = SIM_PAGE;
            s->faults = 0;
        }
        ret = s->drawn.verb == MAP_GPA ? run_map_gpa(vcpu, &s->drawn, false)
                                       : run_fault(vcpu, &s->drawn, false);
        if (ret != SIM_PASS) {
            return ret;
        }
    }
    return SIM_PASS;
}

static int run_op(SimVcpu *vcpu, const Op *op, bool back);

/* The line of a script that makes a request */
static Op as_op(const SimRequest *r)
{
    switch (r->kind) {
    case SIM_MAP_GPA:
        return (Op) { .verb = MAP_GPA, .a = r->gpa, .b = r->pages,
                      .private = r->private, .bits = r->attributes,
                      .expect = -1 };
    case SIM_FAULT:
        return (Op) { .verb = FAULT, .a = r->gpa, .b = r->pages * SIM_PAGE,
                      .private = r->private, .times = 1 };
    case SIM_DEVICE_READ:
        return (Op) { .verb = MMIO_READ, .a = r->gpa, .b = 4, .expect = -1 };
    default:
        return (Op) { .verb = RUN_ERROR, .error = EFAULT, .times = 1 };
    }
}

/*
 * Reports the batch on the control pipe, and waits for the answer: shall there
 * be another one?  All other vCPUs wait meanwhile.
 */
static int talk(SimVcpu *vcpu, bool *go_on)
{
    static int out = -1, in = -1;
    SimScript *s = vcpu->script;
    char answer;
    int ret;

    if (out < 0) {
        g_autofree char *to = g_strconcat(sim_config.control, ".out", NULL);
        g_autofree char *from = g_strconcat(sim_config.control, ".in", NULL);

        /* With O_RDWR, open() does not wait for the other end. */
        out = sim_real_open(to, O_RDWR | O_CLOEXEC);
        in = sim_real_open(from, O_RDWR | O_CLOEXEC);
        if (out < 0 || in < 0) {
            sim_violation("hostile: cannot open %s and %s", to, from);
        }
    }
    if (!s->step) {
        g_autofree char *digest = sim_hostile_digest();

        s->step = 1;
        dprintf(out, "%s %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", digest,
                sim_counted(SIM_CONVERSIONS), sim_counted(SIM_TO_PRIVATE),
                sim_counted(SIM_TO_SHARED));
    }
    ret = wait_for_signal(vcpu, in);
    if (ret != -EAGAIN || read(in, &answer, 1) != 1) {
        return ret;
    }
    *go_on = answer == '+';
    return SIM_PASS;
}

/* Runs batch after batch; returns SIM_PASS when all are done. */
static int run_hostile(SimVcpu *vcpu, const Op *op, bool back)
{
    static bool go_on = true;           /* written while all others wait */
    SimScript *s = vcpu->script;
    int ret;

    if (!s->hostile) {
        s->hostile = sim_hostile_new(vcpu, op->a);
    }
    for (;;) {
        switch (s->phase) {
        case ASK:
            if (!back && s->asked == op->b) {
                s->asked = 0;
                s->phase = MEET;
                continue;
            }
            if (!back) {
                s->asked++;
                s->drawn = as_op(sim_hostile_draw(s->hostile));
            }
            ret = run_op(vcpu, &s->drawn, back);
            if (ret == SIM_PASS) {
                sim_hostile_answered(s->hostile, vcpu->run->hypercall.ret);
                back = false;
                if (vcpu->run->immediate_exit) {
                    return -EINTR;
                }
            }
            break;
        case MEET:
            ret = run_barrier(vcpu, sim_hostile_check);
            if (ret == SIM_PASS) {
                s->batches++;
                s->phase = sim_config.control && !vcpu->id ? TALK : GO_ON;
            }
            break;
        case TALK:
            ret = talk(vcpu, &go_on);
            if (ret == SIM_PASS) {
                s->phase = GO_ON;
            }
            break;
        default:
            ret = run_barrier(vcpu, NULL);
            if (ret == SIM_PASS) {
                s->phase = ASK;
                if (!go_on || s->batches == op->c) {
                    return SIM_PASS;
                }
            }
        }
        if (ret != SIM_PASS) {
            return ret;
        }
        s->step = 0;
    }
}

static int run_op(SimVcpu *vcpu, const Op *op, bool back)
{
    switch (op->verb) {
    case MAP_GPA:
        return run_map_gpa(vcpu, op, back);
    case FAULT:
        return run_fault(vcpu, op, back);
    case READ:
    case WRITE:
    case MMIO_READ:
    case MMIO_WRITE:
        return run_access(vcpu, op, back);
    case FILL:
    case CHECK:
        return run_pattern(vcpu, op);
    case IN:
    case OUT:
        return run_io(vcpu, op, back);
    case PRINT:
        return run_print(vcpu, op, back);
    case BARRIER:
        return run_barrier(vcpu, NULL);
    case STATE:
        check_state(vcpu->vm, op->a, op->b, op->private);
        return SIM_PASS;
    case PIN:
        return run_pin(vcpu, op);
    case RUN_ERROR:
        return run_error(vcpu, op, back);
    case RANDOM:
        return run_random(vcpu, op, back);
    case HOSTILE:
        return run_hostile(vcpu, op, back);
    case SHUTDOWN:
        return back ? SIM_PASS
               : leave(vcpu, KVM_EXIT_SHUTDOWN, "KVM_EXIT_SHUTDOWN");
    case NEW_VM:
        return run_new_vm(vcpu);
    case HALT:
        return wait_for_signal(vcpu, -1);
    default:
        g_assert_not_reached();
    }
}

/* REPEAT and END.  Returns false if it is another op. */
static bool run_loop(SimScript *s, const Op *op)
{
    if (op->verb == REPEAT) {
        if (s->loops == MAX_NESTING) {
            sim_violation("script: repeat is nested too deeply");
        }
        s->loop[s->loops].begin = s->at;
        s->loop[s->loops++].left = op->a;
        return true;
    }
    if (op->verb == END) {
        if (!s->loops) {
            sim_violation("script: end without repeat");
        }
        if (--s->loop[s->loops - 1].left) {
            s->at = s->loop[s->loops - 1].begin;
        } else {
            s->loops--;
        }
        return true;
    }
    return false;
}

int sim_script_run(SimVcpu *vcpu)
{
    SimScript *s = script_of(vcpu);

    for (;;) {
        const Op *op;
        bool back = s->left;
        int ret;

        if (!s->ops || s->at >= s->ops->len) {
            return wait_for_signal(vcpu, -1);
        }
        /*
         * As KVM does: complete the last exit first, even if the emulator
         * wants the vCPU back at once.
         */
        if (!back && vcpu->run->immediate_exit) {
            return -EINTR;
        }
        op = &g_array_index(s->ops, Op, s->at);
        if (run_loop(s, op)) {
            s->at++;
            continue;
        }
        s->left = false;
        ret = run_op(vcpu, op, back);
        if (ret == SIM_PASS) {
            s->at++;
            s->step = 0;
        } else if (ret != -EAGAIN) {
            return ret;
        }
    }
}
