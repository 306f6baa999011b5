/* Runs a fuzz target over every file of the folders given, without libFuzzer: the corpus in the
 * tree is replayed by each test run, with any compiler. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/base.h"

#define INPUT_BYTES_MAX (16 * BASE_MIB)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int replay_file(const char *path)
{
    struct buf b = {0};
    struct err e;
    if (file_read(path, INPUT_BYTES_MAX, &b, &e) != ERR_OK) {
        fprintf(stderr, "%s\n", e.msg);
        return 1;
    }
    /* Exactly as many bytes as the input has, so that a sanitizer sees one too far. */
    uint8_t *exact = malloc(b.len ? b.len : 1);
    if (exact && b.len)
        __builtin_memcpy(exact, b.data, b.len);
    int rc = exact ? LLVMFuzzerTestOneInput(exact, b.len) : 1;
    free(exact);
    buf_done(&b);
    return rc;
}

int main(int argc, char **argv)
{
    size_t count = 0;
    for (int i = 1; i < argc; i++) {
        DIR *dir = opendir(argv[i]);
        if (!dir) {
            perror(argv[i]);
            return 1;
        }
        for (const struct dirent *d; (d = readdir(dir)) != NULL;) {
            if (d->d_name[0] == '.')
                continue;
            char *path = mem_format("%s/%s", argv[i], d->d_name);
            int rc = replay_file(path);
            free(path);
            if (rc != 0)
                return 1;
            count++;
        }
        closedir(dir);
    }
    printf("%zu inputs\n", count);
    return count > 0 ? 0 : 1;
}
