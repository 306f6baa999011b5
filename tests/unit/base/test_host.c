/* What the control groups allow, read from trees made for the test. */
#include "unit.h"

#include "base/cgroup.h"

#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

static char root[64];

static int setup(void **state)
{
    (void)snprintf(root, sizeof(root), "/tmp/switchyard-host-XXXXXX");
    return mkdtemp(root) == NULL;
}

static int teardown(void **state)
{
    char command[100];
    (void)snprintf(command, sizeof(command), "rm -rf '%s'", root);
    return system(command);
}

static void put(const char *group, const char *file, const char *text)
{
    char *dir = mem_format("%s/%s", root, group), *path = mem_format("%s/%s", dir, file);
    assert_int_equal(file_mkdirs(dir, NULL), ERR_OK);
    assert_int_equal(file_write_atomic(path, text, strlen(text), NULL), ERR_OK);
    free(dir);
    free(path);
}

static void nothing_readable_limits_nothing(void **state)
{
    struct cgroup_limits l = cgroup_limits_read("0::/x/y\n", "/nonexistent");
    assert_true(l.cpu_milli == UINT64_MAX && l.memory_bytes == UINT64_MAX);
    l = cgroup_limits_read("", root);
    assert_true(l.cpu_milli == UINT64_MAX && l.memory_bytes == UINT64_MAX);
    l = cgroup_limits_read("garbage\n:\n::\n0:", root);
    assert_true(l.cpu_milli == UINT64_MAX && l.memory_bytes == UINT64_MAX);
}

static void version_2_takes_the_tightest_of_all_parents(void **state)
{
    put("a/b/c", "cpu.max", "max 100000\n");
    put("a/b/c", "memory.max", "max\n");
    put("a/b", "cpu.max", "150000 100000\n");
    put("a/b", "memory.max", "2147483648\n");
    put("a", "cpu.max", "400000 100000\n");
    put("a", "memory.max", "1073741824\n");
    struct cgroup_limits l = cgroup_limits_read("0::/a/b/c\n", root);
    assert_int_equal(l.cpu_milli, 1500);
    assert_int_equal(l.memory_bytes, 1073741824);
}

static void a_container_sees_only_its_own_root(void **state)
{
    put(".", "cpu.max", "50000 100000\n");
    struct cgroup_limits l = cgroup_limits_read("0::/hidden/by/namespace\n", root);
    assert_int_equal(l.cpu_milli, 500);
    l = cgroup_limits_read("0::/\n", root);
    assert_int_equal(l.cpu_milli, 500);
    put(".", "cpu.max", "max 100000\n");
}

static void version_1_reads_each_controller(void **state)
{
    put("cpu,cpuacct/docker/1", "cpu.cfs_quota_us", "250000\n");
    put("cpu,cpuacct/docker/1", "cpu.cfs_period_us", "100000\n");
    put("cpu,cpuacct/docker", "cpu.cfs_quota_us", "-1\n");
    put("cpu,cpuacct/docker", "cpu.cfs_period_us", "100000\n");
    put("memory/docker/1", "memory.limit_in_bytes", "536870912\n");
    put("memory/docker", "memory.limit_in_bytes", "9223372036854771712\n");
    struct cgroup_limits l = cgroup_limits_read("5:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n"
                                                "1:name=systemd:/docker/1\n",
                                                root);
    assert_int_equal(l.cpu_milli, 2500);
    assert_int_equal(l.memory_bytes, 536870912);
}

static void this_process_may_use_something(void **state)
{
    assert_true(cpu_count_usable() >= 1);
    cpu_set_t one, old;
    assert_int_equal(sched_getaffinity(0, sizeof(old), &old), 0);
    CPU_ZERO(&one);
    for (int i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; i++) {
        if (CPU_ISSET(i, &old))
            CPU_SET(i, &one);
    }
    assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);
    assert_int_equal(cpu_count_usable(), 1);
    assert_int_equal(sched_setaffinity(0, sizeof(old), &old), 0);
    assert_true(memory_bytes_usable() > 16 * BASE_MIB);
    assert_true(memory_bytes_usable() <=
                (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_readable_limits_nothing),
        cmocka_unit_test(version_2_takes_the_tightest_of_all_parents),
        cmocka_unit_test(a_container_sees_only_its_own_root),
        cmocka_unit_test(version_1_reads_each_controller),
        cmocka_unit_test(this_process_may_use_something),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
