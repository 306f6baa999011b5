/* libFuzzer target of the configuration: an input is a YAML file. What is accepted must be
 * printable, and read back from what was printed. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "conf/conf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static enum err_code load(struct conf *c, const void *text, size_t len, struct err *e)
{
    char path[64];
    int fd = memfd_create("conf", MFD_CLOEXEC);
    if (fd < 0 || write(fd, text, len) != (ssize_t)len)
        abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    enum err_code code = conf_load_file(c, path, e);
    close(fd);
    return code;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct conf c, again;
    struct buf out = {0};
    struct err e;
    conf_init(&c);
    if (load(&c, data, size, &e) == ERR_OK) {
        enum err_code valid = conf_validate(&c, &e);
        conf_format(&c, false, &out);
        /* Keys are printed as asterisks, which are no keys: only the reading is asked for then. */
        conf_init(&again);
        if (load(&again, out.data, out.len, &e) != ERR_OK)
            abort();
        if (valid == ERR_OK && c.server_api_keys_count == 0 && conf_validate(&again, &e) != ERR_OK)
            abort();
        conf_done(&again);
    }
    buf_done(&out);
    conf_done(&c);
    return 0;
}
