"""What the sandboxed process runs: reads its order, gives up its rights, runs the program.

Run as a script, isolated from the project, by `szilard.lab.sandbox` alone.
"""

import ctypes
import errno
import json
import os
import platform
import resource
import struct
import sys
import traceback

# System calls that stay, by number: computing, clocks, reading files, writing to open streams.
# Everything else, now or in a later kernel, is refused.
ALLOWED = {
    "x86_64": (
        # read write close stat fstat lstat poll lseek mmap mprotect munmap brk
        *(0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12),
        # rt_sigaction rt_sigprocmask rt_sigreturn pread64 readv writev access sched_yield mremap
        *(13, 14, 15, 17, 19, 20, 21, 24, 25),
        # madvise dup nanosleep getpid exit uname fcntl getcwd readlink
        *(28, 32, 35, 39, 60, 63, 72, 79, 89),
        # gettimeofday getrlimit getrusage sysinfo times getuid getgid geteuid getegid
        *(96, 97, 98, 99, 100, 102, 104, 107, 108),
        # sigaltstack gettid time futex getdents64 set_tid_address clock_gettime clock_getres
        *(131, 186, 201, 202, 217, 218, 228, 229),
        # clock_nanosleep exit_group newfstatat readlinkat faccessat set_robust_list getrandom
        *(230, 231, 262, 267, 269, 273, 318),
        # statx rseq faccessat2
        *(332, 334, 439),
    ),
    "aarch64": (
        # getcwd dup fcntl faccessat close getdents64 lseek read write readv writev pread64
        *(17, 23, 25, 48, 57, 61, 62, 63, 64, 65, 66, 67),
        # ppoll readlinkat newfstatat fstat exit exit_group set_tid_address futex set_robust_list
        *(73, 78, 79, 80, 93, 94, 96, 98, 99),
        # nanosleep clock_gettime clock_getres clock_nanosleep sched_yield sigaltstack
        *(101, 113, 114, 115, 124, 132),
        # rt_sigaction rt_sigprocmask rt_sigreturn times uname getrlimit getrusage gettimeofday
        *(134, 135, 139, 153, 160, 163, 165, 169),
        # getpid getuid geteuid getgid getegid gettid sysinfo brk munmap mremap mmap mprotect
        *(172, 174, 175, 176, 177, 178, 179, 214, 215, 216, 222, 226),
        # madvise getrandom statx rseq faccessat2
        *(233, 278, 291, 293, 439),
    ),
}
# Calls that open a file, with the place of their flags among the arguments: reading only.
OPENING = {"x86_64": ((2, 1), (257, 2)), "aarch64": ((56, 2),)}
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | 0o20000000  # O_TMPFILE

# Classic BPF, see linux/filter.h and linux/seccomp.h.
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
NUMBER, ARCH, ARGUMENTS = 0, 4, 16
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2


def instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def system_call_filter(machine: str) -> bytes:
    """The filter's program: each call is let through, let through for reading only, or refused."""
    program = [
        instruction(LOAD, ARCH),
        instruction(EQUAL, ARCHITECTURE[machine], 1, 0),
        instruction(RETURN, KILL),
        instruction(LOAD, NUMBER),
    ]
    for number in ALLOWED[machine]:
        program += [instruction(EQUAL, number, 0, 1), instruction(RETURN, ALLOW)]
    for number, place in OPENING[machine]:
        program += [
            instruction(EQUAL, number, 0, 4),
            instruction(LOAD, ARGUMENTS + 8 * place),
            instruction(ANY_BIT, WRITING, 1, 0),
            instruction(RETURN, ALLOW),
            instruction(RETURN, REFUSE),
        ]
    return b"".join([*program, instruction(RETURN, REFUSE)])


def give_up_rights(cpu: int, memory: int, output: int) -> None:
    """Bounds what the process may use and drops the system calls; neither can be undone."""
    for which, bound in (
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, output),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(which, (bound, bound))
    code = system_call_filter(platform.machine())
    buffer = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    program = Program(len(code) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "the kernel takes no system-call filter")


def main() -> int:
    order = json.load(sys.stdin)
    program = order.pop("program")
    proof = order.pop("proof")
    give_up_rights(**order)
    try:
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
        return 1
    sys.stderr.write(proof)
    return 0


if __name__ == "__main__":
    sys.exit(main())
