/* What this process may use of the machine: CPUs and memory, as the affinity mask, the physical
 * memory and the control groups allow. In a container the first two describe the host; sizing pools
 * by them is how servers get killed. */
#include "base/cgroup.h"

#include "base/base.h"

#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* First bytes of a small kernel file as a string; false if it is not there. */
static bool read_small(const char *path, char *text, size_t cap)
{
    FILE *f = fopen(path, "re");
    if (f == NULL)
        return false;
    size_t len = fread(text, 1, cap - 1, f);
    (void)fclose(f);
    text[len] = '\0';
    return len > 0;
}

static void lower(uint64_t *limit, uint64_t value)
{
    if (value < *limit)
        *limit = value;
}

/* "quota period" in microseconds; "max" or -1 means no limit. */
static void apply_cpu(struct cgroup_limits *ret, const char *quota, const char *period)
{
    long long quota_us = strtoll(quota, NULL, 10);
    long long period_us = strtoll(period, NULL, 10);
    if (quota_us > 0 && period_us > 0 && quota_us < LLONG_MAX / 1000)
        lower(&ret->cpu_milli, (uint64_t)(quota_us * 1000 / period_us));
}

static void apply_memory(struct cgroup_limits *ret, const char *text)
{
    if (text[0] >= '0' && text[0] <= '9')
        lower(&ret->memory_bytes, strtoull(text, NULL, 10));
}

/* One group's files: version 2 names, then version 1 names. */
static void apply_group(struct cgroup_limits *ret, const char *dir)
{
    char path[PATH_MAX], a[64], b[64];
    (void)snprintf(path, sizeof(path), "%.4000s/cpu.max", dir);
    if (read_small(path, a, sizeof(a))) {
        char *space = strchr(a, ' ');
        if (space != NULL && a[0] != 'm')
            apply_cpu(ret, a, space + 1);
    }
    (void)snprintf(path, sizeof(path), "%.4000s/memory.max", dir);
    if (read_small(path, a, sizeof(a)))
        apply_memory(ret, a);
    (void)snprintf(path, sizeof(path), "%.4000s/cpu.cfs_quota_us", dir);
    if (read_small(path, a, sizeof(a))) {
        (void)snprintf(path, sizeof(path), "%.4000s/cpu.cfs_period_us", dir);
        if (read_small(path, b, sizeof(b)))
            apply_cpu(ret, a, b);
    }
    (void)snprintf(path, sizeof(path), "%.4000s/memory.limit_in_bytes", dir);
    if (read_small(path, a, sizeof(a)))
        apply_memory(ret, a);
}

/* The group and every parent up to the mount: the tightest wins. In a container whose namespace
 * hides the parents the path may not exist; then only the levels that do are read. */
static void apply_path(struct cgroup_limits *ret, const char *root, const char *group)
{
    char dir[PATH_MAX];
    int len = snprintf(dir, sizeof(dir), "%s%s", root, group);
    if (len < 0 || (size_t)len >= sizeof(dir))
        return;
    size_t root_len = strlen(root);
    for (size_t n = (size_t)len; n >= root_len;) {
        while (n > root_len && dir[n - 1] == '/')
            n--;
        dir[n] = '\0';
        apply_group(ret, dir);
        if (n == root_len)
            break;
        while (n > root_len && dir[n - 1] != '/')
            n--;
    }
}

struct cgroup_limits cgroup_limits_read(const char *membership, const char *mount)
{
    struct cgroup_limits ret = {.cpu_milli = UINT64_MAX, .memory_bytes = UINT64_MAX};
    /* Lines "id:controllers:/path"; version 2 has an empty list of controllers. */
    for (const char *line = membership; *line != '\0';) {
        size_t line_len = strcspn(line, "\n");
        const char *first = memchr(line, ':', line_len);
        const char *second =
            first != NULL ? memchr(first + 1, ':', line_len - (size_t)(first + 1 - line)) : NULL;
        if (second != NULL) {
            char root[PATH_MAX], group[PATH_MAX];
            int controllers_len = (int)(second - first - 1);
            (void)snprintf(group, sizeof(group), "%.*s", (int)(line + line_len - second - 1),
                           second + 1);
            (void)snprintf(root, sizeof(root), "%.1000s%s%.*s", mount,
                           controllers_len > 0 ? "/" : "", controllers_len, first + 1);
            apply_path(&ret, root, group);
        }
        line += line_len + (line[line_len] == '\n');
    }
    return ret;
}

static struct cgroup_limits own_limits(void)
{
    char membership[8192];
    if (!read_small("/proc/self/cgroup", membership, sizeof(membership)))
        membership[0] = '\0';
    return cgroup_limits_read(membership, "/sys/fs/cgroup");
}

static unsigned affinity_count(void)
{
    /* The kernel refuses sets smaller than its own; grow until it fits. */
    for (int cpus = 1024; cpus <= 1 << 20; cpus *= 4) {
        cpu_set_t *set = CPU_ALLOC((size_t)cpus);
        if (set == NULL)
            break;
        size_t bytes = CPU_ALLOC_SIZE((size_t)cpus);
        int count = sched_getaffinity(0, bytes, set) == 0 ? CPU_COUNT_S(bytes, set) : 0;
        CPU_FREE(set);
        if (count > 0)
            return (unsigned)count;
    }
    return 1;
}

unsigned cpu_count_usable(void)
{
    unsigned count = affinity_count();
    uint64_t milli = own_limits().cpu_milli;
    /* Rounded up: the last fraction of a CPU is worth a thread, which is throttled at worst. */
    if (milli < (uint64_t)count * 1000)
        count = (unsigned)((milli + 999) / 1000);
    return count > 0 ? count : 1;
}

uint64_t memory_bytes_usable(void)
{
    uint64_t bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    lower(&bytes, own_limits().memory_bytes);
    return bytes;
}
