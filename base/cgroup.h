/* Private to base/ and its tests: reading the limits of control groups from a given directory. */
#ifndef SWITCHYARD_BASE_CGROUP_H
#define SWITCHYARD_BASE_CGROUP_H

#include <stdint.h>

/* What the process's groups and all their parents allow; UINT64_MAX where nothing is limited. */
struct cgroup_limits {
    uint64_t cpu_milli; /* thousandths of a CPU */
    uint64_t memory_bytes;
};

/* `membership` is the text of /proc/self/cgroup, `mount` the root of the cgroup file systems
 * (/sys/fs/cgroup). Versions 1 and 2; what cannot be read limits nothing. */
struct cgroup_limits cgroup_limits_read(const char *membership, const char *mount);

#endif
