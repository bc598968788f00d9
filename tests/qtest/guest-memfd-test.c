/*
 * memory-backend-guest-memfd and query-guest-memfd through QMP
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/units.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "qobject/qstring.h"
#include "tests/qtest/libqtest.h"

/* Start QEMU with KVM if the host has it.  No guest code runs. */
static QTestState *start(void)
{
    return qtest_init("-accel kvm -machine none");
}

static QDict *query(QTestState *qts)
{
    return qtest_qmp_assert_success_ref(
        qts, "{ 'execute': 'query-guest-memfd' }");
}

/* Skip the test where a guest_memfd cannot be mapped. */
static bool usable(QTestState *qts)
{
    g_autoptr(QDict) info = query(qts);
    QDict *host = qdict_get_qdict(info, "host");

    if (!qlist_empty(qdict_get_qlist(host, "missing"))) {
        g_test_skip(qdict_get_str(host, "missing-text"));
        return false;
    }
    g_assert_false(qdict_haskey(host, "missing-text"));
    return true;
}

/* The block @id of query-guest-memfd, or NULL. */
static QDict *query_block(QTestState *qts, const char *id)
{
    g_autoptr(QDict) info = query(qts);
    QListEntry *e;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(info, "blocks"), e) {
        QDict *block = qobject_to(QDict, qlist_entry_obj(e));

        if (g_str_equal(qdict_get_str(block, "id"), id)) {
            return qobject_ref(block);
        }
    }
    return NULL;
}

static uint64_t allocated(QTestState *qts, const char *id)
{
    g_autoptr(QDict) block = query_block(qts, id);

    g_assert_true(qdict_haskey(block, "allocated"));
    return qdict_get_int(block, "allocated");
}

static QDict *object_add(const char *props)
{
    g_autofree char *json = g_strdup_printf(
        "{ 'execute': 'object-add', 'arguments': { 'id': 'm', %s } }", props);

    return qobject_to(QDict, qobject_from_json(json, &error_abort));
}

static void add(QTestState *qts, const char *props)
{
    g_autoptr(QDict) cmd = object_add(props);
    QDict *rsp;

    qtest_qmp_send(qts, "%p", qobject_ref(cmd));
    rsp = qtest_qmp_receive(qts);
    if (qdict_haskey(rsp, "error")) {
        g_test_message("%s", qdict_get_str(qdict_get_qdict(rsp, "error"),
                                           "desc"));
    }
    g_assert_true(qdict_haskey(rsp, "return"));
    qobject_unref(rsp);
}

static void del(QTestState *qts)
{
    qtest_qmp_assert_success(qts, "{ 'execute': 'object-del',"
                             "  'arguments': { 'id': 'm' } }");
}

static void assert_error(QTestState *qts, QDict *cmd, const char *want)
{
    QDict *rsp;
    const char *desc;

    qtest_qmp_send(qts, "%p", cmd);
    rsp = qtest_qmp_receive(qts);
    g_assert_true(qdict_haskey(rsp, "error"));
    desc = qdict_get_str(qdict_get_qdict(rsp, "error"), "desc");
    if (!strstr(desc, want)) {
        g_test_message("wanted \"%s\", got \"%s\"", want, desc);
    }
    g_assert_nonnull(strstr(desc, want));
    qobject_unref(rsp);
}

#define GUEST_MEMFD "'qom-type': 'memory-backend-guest-memfd'"
#define MEMFD_ON "'qom-type': 'memory-backend-memfd', 'guest-memfd': 'on'"

static void test_block_is_described(void)
{
    QTestState *qts = start();

    if (usable(qts)) {
        g_autoptr(QDict) block = NULL;

        add(qts, GUEST_MEMFD ", 'size': 2097152");
        block = query_block(qts, "m");
        g_assert_nonnull(block);
        g_assert_cmpint(qdict_get_int(block, "size"), ==, 2 * MiB);
        g_assert_cmpint(qdict_get_int(block, "inode"), >, 0);
        g_assert_cmpstr(qdict_get_str(block, "state"), ==, "shared");
        g_assert_cmpint(qdict_get_int(block, "allocated"), ==, 0);
        g_assert_true(qlist_empty(qdict_get_qlist(block, "slots")));
    }
    qtest_quit(qts);
}

static void test_deleted_block_is_gone(void)
{
    QTestState *qts = start();

    if (usable(qts)) {
        add(qts, GUEST_MEMFD ", 'size': 2097152");
        del(qts);
        g_assert_null(query_block(qts, "m"));
    }
    qtest_quit(qts);
}

static void test_memfd_spelling_is_the_same(void)
{
    QTestState *qts = start();

    if (usable(qts)) {
        g_autoptr(QDict) block = NULL;

        add(qts, MEMFD_ON ", 'size': 2097152, 'seal': true");
        block = query_block(qts, "m");
        g_assert_nonnull(block);
        assert_error(qts, qdict_from_jsonf_nofail(
            "{ 'execute': 'qom-set', 'arguments': { 'path': '/objects/m',"
            "  'property': 'guest-memfd', 'value': 'off' } }"),
            "cannot change");
    }
    qtest_quit(qts);
}

static void test_memfd_is_a_memfd_by_default(void)
{
    static const char *const props[] = {
        "'qom-type': 'memory-backend-memfd', 'size': 2097152",
        "'qom-type': 'memory-backend-memfd', 'guest-memfd': 'auto',"
        "'size': 2097152",
        "'qom-type': 'memory-backend-memfd', 'guest-memfd': 'off',"
        "'size': 2097152, 'share': false",
    };
    QTestState *qts = start();
    int i;

    for (i = 0; i < ARRAY_SIZE(props); i++) {
        add(qts, props[i]);
        g_assert_null(query_block(qts, "m"));
        del(qts);
    }
    qtest_quit(qts);
}

typedef struct BadProps {
    const char *name;
    const char *props;
    const char *want;
} BadProps;

static const BadProps bad_props[] = {
    { "share=off is refused",
      GUEST_MEMFD ", 'size': 2097152, 'share': false", "share=off" },
    { "merge=on is refused",
      GUEST_MEMFD ", 'size': 2097152, 'merge': true", "merge=on" },
    { "a size of 0 is refused",
      GUEST_MEMFD ", 'size': 0", "doesn't take value '0'" },
    { "an unaligned size is refused",
      GUEST_MEMFD ", 'size': 5000", "not a multiple" },
    { "a size beyond any address space is refused",
      GUEST_MEMFD ", 'size': 9223372036854771712", "" },
    { "prealloc=on with reserve=off is refused",
      GUEST_MEMFD ", 'size': 2097152, 'reserve': false, 'prealloc': true",
      "incompatible" },
    { "0 prealloc-threads are refused",
      GUEST_MEMFD ", 'size': 2097152, 'prealloc-threads': 0",
      "doesn't take value '0'" },
    { "there is no rom",
      GUEST_MEMFD ", 'size': 2097152, 'rom': 'on'", "'rom' is unexpected" },
    { "there is no readonly",
      GUEST_MEMFD ", 'size': 2097152, 'readonly': true",
      "'readonly' is unexpected" },
    { "there is no hugetlb",
      GUEST_MEMFD ", 'size': 2097152, 'hugetlb': true",
      "'hugetlb' is unexpected" },
    { "host-nodes without policy are refused",
      GUEST_MEMFD ", 'size': 2097152, 'host-nodes': [ 0 ]",
      "host-nodes must be empty" },
    { "memfd with share=off is refused",
      MEMFD_ON ", 'size': 2097152, 'share': false", "share=off" },
    { "memfd with hugetlb=on is refused",
      MEMFD_ON ", 'size': 2097152, 'hugetlb': true", "hugetlb=on" },
    { "memfd with merge=on is refused",
      MEMFD_ON ", 'size': 2097152, 'merge': true", "merge=on" },
};

static void test_bad_props(const void *data)
{
    const BadProps *bad = data;
    QTestState *qts = start();

    if (usable(qts)) {
        assert_error(qts, object_add(bad->props), bad->want);
        g_assert_null(query_block(qts, "m"));
        /* Nothing is left behind: the name is free. */
        add(qts, GUEST_MEMFD ", 'size': 2097152");
    }
    qtest_quit(qts);
}

static void test_merge_cannot_be_turned_on_later(void)
{
    QTestState *qts = start();

    if (usable(qts)) {
        add(qts, GUEST_MEMFD ", 'size': 2097152");
        assert_error(qts, qdict_from_jsonf_nofail(
            "{ 'execute': 'qom-set', 'arguments': { 'path': '/objects/m',"
            "  'property': 'merge', 'value': true } }"), "merge=on");
        qtest_qmp_assert_success(
            qts, "{ 'execute': 'qom-set', 'arguments': {"
            "  'path': '/objects/m', 'property': 'merge', 'value': false } }");
    }
    qtest_quit(qts);
}

static void test_prealloc_allocates_all(void)
{
    /* The last one is large enough for two threads. */
    static const char *const props[] = {
        GUEST_MEMFD ", 'size': 8388608, 'prealloc': true",
        GUEST_MEMFD ", 'size': 8388608, 'prealloc': true,"
        "'prealloc-threads': 7",
        MEMFD_ON ", 'size': 8388608, 'prealloc': true",
        GUEST_MEMFD ", 'size': 268439552, 'prealloc': true,"
        "'prealloc-threads': 2",
    };
    QTestState *qts = start();
    int i;

    if (usable(qts)) {
        for (i = 0; i < ARRAY_SIZE(props); i++) {
            g_autoptr(QDict) block = NULL;

            add(qts, props[i]);
            block = query_block(qts, "m");
            g_assert_cmpint(qdict_get_int(block, "allocated"), ==,
                            qdict_get_int(block, "size"));
            del(qts);
        }
    }
    qtest_quit(qts);
}

static void test_prealloc_works_later(void)
{
    QTestState *qts = start();

    if (usable(qts)) {
        add(qts, GUEST_MEMFD ", 'size': 8388608");
        g_assert_cmpint(allocated(qts, "m"), ==, 0);
        qtest_qmp_assert_success(
            qts, "{ 'execute': 'qom-set', 'arguments': {"
            "  'path': '/objects/m', 'property': 'prealloc',"
            "  'value': true } }");
        g_assert_cmpint(allocated(qts, "m"), ==, 8 * MiB);
    }
    qtest_quit(qts);
}

static void test_prealloc_context_is_used(void)
{
    QTestState *qts = start();

    if (usable(qts)) {
        qtest_qmp_assert_success(
            qts, "{ 'execute': 'object-add', 'arguments': {"
            "  'qom-type': 'thread-context', 'id': 'tc' } }");
        add(qts, GUEST_MEMFD ", 'size': 8388608, 'prealloc': true,"
            "'prealloc-context': 'tc'");
        g_assert_cmpint(allocated(qts, "m"), ==, 8 * MiB);
    }
    qtest_quit(qts);
}

static void test_reserve_off_is_accepted(void)
{
    QTestState *qts = start();

    if (usable(qts)) {
        add(qts, GUEST_MEMFD ", 'size': 8388608, 'reserve': false");
        g_assert_cmpint(allocated(qts, "m"), ==, 0);
    }
    qtest_quit(qts);
}

static void test_policy_works_or_is_refused(void)
{
    const char *props = GUEST_MEMFD ", 'size': 2097152, 'policy': 'bind',"
                        "'host-nodes': [ 0 ]";
    QTestState *qts = start();

    if (usable(qts)) {
        g_autoptr(QDict) info = query(qts);

        if (qdict_get_bool(qdict_get_qdict(info, "host"), "numa-policy")) {
            add(qts, props);
        } else {
            assert_error(qts, object_add(props), "ignores NUMA policies");
        }
    }
    qtest_quit(qts);
}

/* Text of /proc/PID/NAME, or NULL. */
static char *proc_file(QTestState *qts, const char *name)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/%s",
                                            (int)qtest_pid(qts), name);
    g_autofree char *text = NULL;

    if (!g_file_get_contents(path, &text, NULL, NULL)) {
        return NULL;
    }
    return g_steal_pointer(&text);
}

/*
 * How many descriptors are a guest_memfd; each must have close-on-exec set
 * (02000000 in the octal flags of fdinfo).
 */
static int count_fds(QTestState *qts)
{
    g_autofree char *dir = g_strdup_printf("/proc/%d/fd",
                                           (int)qtest_pid(qts));
    g_autoptr(GDir) fds = g_dir_open(dir, 0, NULL);
    const char *name;
    int count = 0;

    while ((name = g_dir_read_name(fds))) {
        g_autofree char *path = g_build_filename(dir, name, NULL);
        g_autofree char *target = g_file_read_link(path, NULL);
        g_autofree char *info = g_strdup_printf("fdinfo/%s", name);
        g_autofree char *text = NULL;
        const char *flags;
        unsigned long value;

        if (!target || !strstr(target, "kvm-gmem")) {
            continue;
        }
        text = proc_file(qts, info);
        if (!text) {
            continue;   /* closed meanwhile */
        }
        flags = strstr(text, "flags:");
        g_assert_nonnull(flags);
        g_assert_cmpint(sscanf(flags, "flags: %lo", &value), ==, 1);
        g_assert_true(value & O_CLOEXEC);
        count++;
    }
    return count;
}

static int count_mappings(QTestState *qts)
{
    g_autofree char *maps = proc_file(qts, "maps");
    const char *p = maps;
    int count = 0;

    while ((p = strstr(p, "kvm-gmem"))) {
        p++;
        count++;
    }
    return count;
}

static void test_nothing_leaks(void)
{
    QTestState *qts = start();
    int i;

    if (usable(qts)) {
        for (i = 0; i < 100; i++) {
            add(qts, i & 1 ? MEMFD_ON ", 'size': 2097152"
                           : GUEST_MEMFD ", 'size': 2097152");
            g_assert_cmpint(count_mappings(qts), >=, 1);
            g_assert_cmpint(count_fds(qts), >=, 1);
            del(qts);
            /* A refusal must not leak either. */
            assert_error(qts, object_add(GUEST_MEMFD ", 'size': 2097152,"
                                         "'host-nodes': [ 0 ]"), "");
        }
        /* File and mapping go after an RCU grace period. */
        while (count_fds(qts) || count_mappings(qts)) {
            g_usleep(1000);
        }
    }
    qtest_quit(qts);
}

static void test_dump_off_is_honoured(void)
{
    QTestState *qts = start();

    if (usable(qts)) {
        g_autofree char *smaps = NULL;
        char *flags;

        add(qts, GUEST_MEMFD ", 'size': 2097152, 'dump': false");
        smaps = proc_file(qts, "smaps");
        flags = strstr(strstr(smaps, "kvm-gmem"), "VmFlags:");
        *strchr(flags, '\n') = '\0';
        g_assert_nonnull(strstr(flags, " dd"));
    }
    qtest_quit(qts);
}

static void test_cpr_is_blocked(void)
{
    QTestState *qts = start();

    if (usable(qts)) {
        add(qts, GUEST_MEMFD ", 'size': 2097152");
        qtest_qmp_assert_success(
            qts, "{ 'execute': 'migrate-set-parameters',"
            "  'arguments': { 'mode': 'cpr-transfer' } }");
        assert_error(qts, qdict_from_jsonf_nofail(
            "{ 'execute': 'migrate', 'arguments': { 'channels': ["
            "  { 'channel-type': 'main', 'addr': { 'transport': 'socket',"
            "    'type': 'unix', 'path': '/nowhere' } },"
            "  { 'channel-type': 'cpr', 'addr': { 'transport': 'socket',"
            "    'type': 'unix', 'path': '/nowhere' } } ] } }"),
            "guest_memfd");
    }
    qtest_quit(qts);
}

static void test_hmp(void)
{
    QTestState *qts = start();

    if (usable(qts)) {
        g_autofree char *text = NULL;

        add(qts, GUEST_MEMFD ", 'size': 2097152");
        text = qtest_hmp(qts, "info guest-memfd");
        g_assert_nonnull(strstr(text, "mmap, init-shared"));
        g_assert_nonnull(strstr(text, "m: 2 MiB, inode "));
    }
    qtest_quit(qts);
}

static void test_without_kvm(void)
{
    QTestState *qts = qtest_init("-machine none");
    g_autoptr(QDict) info = query(qts);
    QDict *host = qdict_get_qdict(info, "host");
    QList *missing = qdict_get_qlist(host, "missing");
    g_autofree char *text = qtest_hmp(qts, "info guest-memfd");

    g_assert_cmpstr(qdict_get_str(host, "generation"), ==, "none");
    g_assert_cmpint(qlist_size(missing), ==, 1);
    g_assert_cmpstr(qstring_get_str(qobject_to(QString, qlist_peek(missing))),
                    ==, "kvm");
    g_assert_nonnull(strstr(text, "host: none"));
    g_assert_nonnull(strstr(text, qdict_get_str(host, "missing-text")));
    assert_error(qts, object_add(GUEST_MEMFD ", 'size': 2097152"), "KVM");
    assert_error(qts, object_add(MEMFD_ON ", 'size': 2097152"), "KVM");
    qtest_quit(qts);
}

static void send_event(QTestState *qts, const char *name, const char *value)
{
    qtest_qmp_assert_success(
        qts, "{ 'execute': 'qom-set', 'arguments': {"
        "  'path': '/machine/peripheral/t', 'property': %s, 'value': %s } }",
        name, value);
}

/* An event that has been sent, or NULL. */
static QDict *next_event(QTestState *qts, const char *name)
{
    /* Events that were sent before an answer arrive before it. */
    qtest_qmp_assert_success(qts, "{ 'execute': 'query-name' }");
    return qtest_qmp_event_ref(qts, name);
}

/* The next one is of that block, and has that number. */
static void assert_event(QTestState *qts, const char *name, const char *id,
                         int number)
{
    g_autoptr(QDict) event = next_event(qts, name);
    QDict *data;

    g_assert_nonnull(event);
    data = qdict_get_qdict(event, "data");
    g_assert_cmpstr(qdict_get_str(data, "id"), ==, id);
    g_assert_cmpint(qdict_get_int(data, "offset"), ==, number);
}

#define SECOND 1000000000 /* ns */

/* A test device sends them.  The clock stands still but for clock_step. */
static void test_events_are_limited(const void *opaque)
{
    const char *property = opaque;
    const char *name = g_str_equal(property, "pinned")
                       ? "GUEST_MEMFD_PAGE_PINNED"
                       : "GUEST_MEMFD_PRIVATE_TOUCHED";
    QTestState *qts = qtest_init("-machine none "
                                 "-device guest-memfd-testdev,id=t");

    send_event(qts, property, "a 1");
    assert_event(qts, name, "a", 1);
    send_event(qts, property, "a 2");
    send_event(qts, property, "a 3");
    /* Another block's does not wait for it. */
    send_event(qts, property, "b 4");
    assert_event(qts, name, "b", 4);
    g_assert_null(next_event(qts, name));

    qtest_clock_step(qts, SECOND);
    assert_event(qts, name, "a", 3);
    g_assert_null(next_event(qts, name));
    qtest_quit(qts);
}

static void test_help(void)
{
    g_autofree char *command = g_strdup_printf("%s -help",
                                               getenv("QTEST_QEMU_BINARY"));
    g_autofree char *text = NULL;
    const char *words[] = {
        "memory-backend-guest-memfd", "guest-memfd=on", "sw-protected-guest",
        "convert-in-place=", "share-file=",
    };
    int i, status;

    g_assert_true(g_spawn_command_line_sync(command, &text, NULL, &status,
                                            NULL));
    g_assert_cmpint(status, ==, 0);
    for (i = 0; i < ARRAY_SIZE(words); i++) {
        g_assert_nonnull(strstr(text, words[i]));
    }
}

/* Registers of ACPI memory hot-plug, docs/specs/acpi_mem_hotplug.rst. */
#define MEMHP_SELECT 0xa00
#define MEMHP_FLAGS 0xa14
#define MEMHP_REMOVE_EVENT (1 << 2)
#define MEMHP_EJECT (1 << 3)

static void assert_bound(QTestState *qts, const char *id, bool plugged)
{
    g_autoptr(QDict) block = query_block(qts, id);
    QList *slots = qdict_get_qlist(block, "slots");
    QListEntry *e;

    g_assert_cmpint(qlist_size(slots), ==, plugged);
    QLIST_FOREACH_ENTRY(slots, e) {
        g_assert_true(qdict_get_bool(qobject_to(QDict, qlist_entry_obj(e)),
                                     "bound"));
    }
}

/*
 * A block that was plugged goes when its last user in QEMU does, after an RCU
 * grace period: wait for the event, as long as the harness lets us.
 */
static void wait_until_gone(QTestState *qts, const char *id)
{
    QDict *block;

    while ((block = query_block(qts, id))) {
        qobject_unref(block);
        g_usleep(1000);
    }
}

/* The test plays the guest's part; KVM really has the memslots. */
static void test_hotplug_a_hundred_times(void)
{
    QTestState *qts;
    int i;

    qts = start();
    if (!usable(qts)) {
        qtest_quit(qts);
        return;
    }
    qtest_quit(qts);

    qts = qtest_init("-accel kvm -S -machine q35,smm=off,memory-backend=ram0 "
                     "-m 64M,slots=1,maxmem=1G -object "
                     "memory-backend-guest-memfd,id=ram0,size=64M");
    for (i = 0; i < 100; i++) {
        add(qts, GUEST_MEMFD ", 'size': 134217728");
        assert_bound(qts, "m", false);
        qtest_qmp_assert_success(
            qts, "{ 'execute': 'device_add', 'arguments': {"
            "  'driver': 'pc-dimm', 'id': 'd', 'memdev': 'm' } }");
        assert_bound(qts, "m", true);
        assert_error(qts, qdict_from_jsonf_nofail(
            "{ 'execute': 'object-del', 'arguments': { 'id': 'm' } }"),
            "is mapped");

        qtest_qmp_assert_success(
            qts, "{ 'execute': 'device_del', 'arguments': { 'id': 'd' } }");
        qtest_outl(qts, MEMHP_SELECT, 0);
        qtest_outb(qts, MEMHP_FLAGS, MEMHP_REMOVE_EVENT);
        qtest_outb(qts, MEMHP_FLAGS, MEMHP_EJECT);
        qtest_qmp_eventwait(qts, "DEVICE_DELETED");
        assert_bound(qts, "m", false);
        del(qts);
        wait_until_gone(qts, "m");
    }
    /* What is left is RAM. */
    while (count_fds(qts) > 1 || count_mappings(qts) > 1) {
        g_usleep(1000);
    }
    g_assert_cmpint(count_fds(qts), ==, 1);
    qtest_quit(qts);
}

#define ADD(name, func) qtest_add_func("/guest-memfd/" name, func)

int main(int argc, char **argv)
{
    int i;

    g_test_init(&argc, &argv, NULL);
    ADD("a block is described", test_block_is_described);
    ADD("a deleted block is gone", test_deleted_block_is_gone);
    ADD("memfd spelling is the same", test_memfd_spelling_is_the_same);
    ADD("memfd is a memfd by default", test_memfd_is_a_memfd_by_default);
    for (i = 0; i < ARRAY_SIZE(bad_props); i++) {
        g_autofree char *path = g_strdup_printf("/guest-memfd/%s",
                                                bad_props[i].name);
        qtest_add_data_func(path, &bad_props[i], test_bad_props);
    }
    ADD("merge cannot be turned on later",
        test_merge_cannot_be_turned_on_later);
    ADD("prealloc allocates all", test_prealloc_allocates_all);
    ADD("prealloc works later", test_prealloc_works_later);
    ADD("prealloc-context is used", test_prealloc_context_is_used);
    ADD("reserve=off is accepted", test_reserve_off_is_accepted);
    ADD("policy works or is refused", test_policy_works_or_is_refused);
    ADD("nothing leaks", test_nothing_leaks);
    ADD("hot-plug a hundred times", test_hotplug_a_hundred_times);
    ADD("dump=off is honoured", test_dump_off_is_honoured);
    ADD("CPR is blocked", test_cpr_is_blocked);
    ADD("info guest-memfd", test_hmp);
    ADD("without KVM an error says so", test_without_kvm);
    ADD("-help knows the objects", test_help);
    qtest_add_data_func("/guest-memfd/events of pinned pages are limited",
                        "pinned", test_events_are_limited);
    qtest_add_data_func("/guest-memfd/events of touched pages are limited",
                        "touched", test_events_are_limited);
    return g_test_run();
}
