//! Windows: console events, window messages, the service's stop, access lists of files, and clocks.
//!
//! The one module of the agent that calls the system's interface itself; nothing unsafe leaves it.

#![expect(
    unsafe_code,
    reason = "no crate wraps console handlers that wait, session ends, private files and clocks"
)]

use std::fs::{self, File};
use std::io;
use std::os::windows::ffi::OsStrExt;
use std::os::windows::io::{AsHandle, FromRawHandle, OwnedHandle};
use std::path::Path;
use std::ptr;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result};
use smol::channel::{self, Receiver, Sender};
use windows_sys::Win32::Foundation::{
    GENERIC_WRITE, HANDLE, HLOCAL, HWND, INVALID_HANDLE_VALUE, LPARAM, LRESULT, LocalFree, TRUE, WPARAM,
};
use windows_sys::Win32::Security::Authorization::{
    ConvertSidToStringSidW, ConvertStringSecurityDescriptorToSecurityDescriptorW, SDDL_REVISION_1,
};
use windows_sys::Win32::Security::{
    GetTokenInformation, PSECURITY_DESCRIPTOR, SECURITY_ATTRIBUTES, TOKEN_QUERY, TOKEN_USER, TokenUser,
};
use windows_sys::Win32::Storage::FileSystem::{
    CREATE_NEW, CreateFileW, FILE_ATTRIBUTE_NORMAL, FILE_SHARE_DELETE, FILE_SHARE_READ, FILE_SHARE_WRITE,
};
use windows_sys::Win32::System::Console::{
    CTRL_BREAK_EVENT, CTRL_C_EVENT, CTRL_LOGOFF_EVENT, FreeConsole, GetConsoleProcessList, STD_ERROR_HANDLE,
    STD_INPUT_HANDLE, STD_OUTPUT_HANDLE, SetConsoleCtrlHandler, SetStdHandle,
};
use windows_sys::Win32::System::LibraryLoader::GetModuleHandleW;
use windows_sys::Win32::System::SystemInformation::GetTickCount64;
use windows_sys::Win32::System::Threading::{
    GetCurrentProcess, IDLE_PRIORITY_CLASS, OpenProcessToken, SetPriorityClass,
};
use windows_sys::Win32::System::WindowsProgramming::QueryUnbiasedInterruptTime;
use windows_sys::Win32::UI::WindowsAndMessaging::{
    CreateWindowExW, DefWindowProcW, DispatchMessageW, GetMessageW, MSG, RegisterClassW, WM_CLOSE,
    WM_ENDSESSION, WM_QUERYENDSESSION, WNDCLASSW,
};
use windows_sys::core::{BOOL, PWSTR};
use windows_sys::w;

use super::Clocks;

/// The system calls back without a context, so there is one place for its requests in the whole process.
static LEAVE: LazyLock<(Sender<()>, Receiver<()>)> = LazyLock::new(|| channel::bounded(1));

/// Bytes of a `TOKEN_USER` with the longest possible SID, rounded up.
const TOKEN_USER_BYTES_MAX: usize = 128;

/// Asks the agent of this process to leave, now or as soon as it listens.
pub(crate) fn ask_to_leave() {
    // One request that waits is as good as many.
    let _ = LEAVE.0.try_send(());
}

/// Asks as soon as standard input ends: whoever started this process holds the other end, and lets go of it to say so, or
/// because it is gone itself.
pub(crate) fn leave_when_input_ends() {
    std::thread::spawn(|| {
        if let Ok(mut input) = take_input() {
            let _ = io::copy(&mut input, &mut io::sink());
        }
        ask_to_leave();
    });
}

/// Standard input, which is none of the process's afterwards. Whoever asks what kind of handle it is waits until a read of it
/// ends, and a driver's library does ask while it is loaded, where it has a C run time of its own.
///
/// # Errors
/// When the system gives no second handle.
pub(crate) fn take_input() -> io::Result<File> {
    let input = io::stdin().as_handle().try_clone_to_owned()?;
    // SAFETY: no reference to this handle is kept anywhere, the standard library asks for it each time.
    unsafe { SetStdHandle(STD_INPUT_HANDLE, ptr::null_mut()) };
    Ok(File::from(input))
}

/// Tells each time the system asks this process to end: Ctrl-C, Ctrl-Break, a console that closes, `taskkill`, the end
/// of the session, and whoever calls [`ask_to_leave`].
///
/// # Errors
/// When console events cannot be listened for.
pub(crate) fn leave_requests() -> Result<Receiver<()>> {
    // SAFETY: the handler is a function of this program, which lives as long as the process.
    if unsafe { SetConsoleCtrlHandler(Some(console_event), TRUE) } == 0 {
        return Err(io::Error::last_os_error()).context("cannot listen for Ctrl-C and Ctrl-Break");
    }
    std::thread::Builder::new()
        .name("session".into())
        .spawn(|| {
            if let Err(error) = hear_of_the_session() {
                tracing::warn!(%error, "the end of the session will end this agent without a goodbye");
            }
        })
        .context("cannot start a thread")?;
    Ok(LEAVE.1.clone())
}

/// Called by the system on a thread of its own.
unsafe extern "system" fn console_event(event: u32) -> BOOL {
    // Only services hear that some user leaves, and it is no concern of theirs.
    if event != CTRL_LOGOFF_EVENT {
        ask_to_leave();
        if event != CTRL_C_EVENT && event != CTRL_BREAK_EVENT {
            hold();
        }
    }
    TRUE
}

/// The process is ended as soon as the caller returns, or about five seconds later: holds until `main` has ended.
fn hold() -> ! {
    loop {
        std::thread::park();
    }
}

/// A window that nobody sees, because a program that could draw hears of the session's end by messages to its windows
/// only. `taskkill` without `/F` closes it.
fn hear_of_the_session() -> io::Result<()> {
    let class = w!("SkeinAgent");
    // SAFETY: the module is this program; the class's name is static; the procedure is a function of this program.
    let window = unsafe {
        let instance = GetModuleHandleW(ptr::null());
        let description = WNDCLASSW {
            lpfnWndProc: Some(window_message),
            hInstance: instance,
            lpszClassName: class,
            ..Default::default()
        };
        if RegisterClassW(&raw const description) == 0 {
            return Err(io::Error::last_os_error());
        }
        let (nobody, nothing) = (ptr::null_mut(), ptr::null_mut());
        CreateWindowExW(0, class, w!("Skein"), 0, 0, 0, 0, 0, nobody, nothing, instance, ptr::null())
    };
    if window.is_null() {
        return Err(io::Error::last_os_error());
    }
    let mut message = MSG::default();
    // SAFETY: the message is owned by this thread, whose window it is for.
    while unsafe { GetMessageW(&raw mut message, ptr::null_mut(), 0, 0) } > 0 {
        // SAFETY: as above; it was just filled.
        unsafe { DispatchMessageW(&raw const message) };
    }
    Ok(())
}

unsafe extern "system" fn window_message(window: HWND, message: u32, w: WPARAM, l: LPARAM) -> LRESULT {
    match message {
        WM_CLOSE => {
            ask_to_leave();
            0
        }
        // The session may end.
        WM_QUERYENDSESSION => 1,
        WM_ENDSESSION if w != 0 => {
            ask_to_leave();
            hold()
        }
        // SAFETY: passes on what the system has given.
        _ => unsafe { DefWindowProcW(window, message, w, l) },
    }
}

/// Creates a file, in place of any that was there, which nobody can open but this user, the system and administrators,
/// whatever its directory allows. A file system without access lists has it as open as everything else on it.
///
/// # Errors
/// As the file system says.
pub(crate) fn create_private(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    // Protected from what it would inherit; full access for the user, the system, and the built-in administrators.
    let list = format!("D:P(A;;FA;;;{})(A;;FA;;;SY)(A;;FA;;;BA)", own_sid()?);
    let list = wide(list.as_ref());
    let mut descriptor: PSECURITY_DESCRIPTOR = ptr::null_mut();
    // SAFETY: the text ends in a null; the descriptor is freed below.
    let converted = unsafe {
        ConvertStringSecurityDescriptorToSecurityDescriptorW(
            list.as_ptr(),
            SDDL_REVISION_1,
            &raw mut descriptor,
            ptr::null_mut(),
        )
    };
    if converted == 0 {
        return Err(io::Error::last_os_error());
    }
    let attributes = SECURITY_ATTRIBUTES {
        nLength: size_of::<SECURITY_ATTRIBUTES>() as u32,
        lpSecurityDescriptor: descriptor,
        bInheritHandle: 0,
    };
    let name = wide(std::path::absolute(path)?.as_os_str());
    // SAFETY: name, attributes and descriptor live until the call returns.
    let handle = unsafe {
        CreateFileW(
            name.as_ptr(),
            GENERIC_WRITE,
            FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE,
            &raw const attributes,
            CREATE_NEW,
            FILE_ATTRIBUTE_NORMAL,
            ptr::null_mut(),
        )
    };
    let error = io::Error::last_os_error();
    // SAFETY: allocated by the conversion above, and not used any more.
    unsafe { LocalFree(descriptor as HLOCAL) };
    if handle == INVALID_HANDLE_VALUE {
        return Err(error);
    }
    // SAFETY: just opened, and owned by nobody else.
    Ok(File::from(unsafe { OwnedHandle::from_raw_handle(handle) }))
}

/// This process's user, as access lists name it.
fn own_sid() -> io::Result<String> {
    let mut token: HANDLE = ptr::null_mut();
    // SAFETY: the pseudo handle of this process needs no closing; the token is closed by its owner below.
    let token = unsafe {
        if OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, &raw mut token) == 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedHandle::from_raw_handle(token)
    };
    // Of words, so that it is aligned as the structure is.
    let mut user = [0_u64; TOKEN_USER_BYTES_MAX / 8];
    let mut written = 0;
    let mut text: PWSTR = ptr::null_mut();
    // SAFETY: the buffer is as long as said; the SID that the structure points to lies behind it in the same buffer.
    unsafe {
        let (handle, place) = (std::os::windows::io::AsRawHandle::as_raw_handle(&token), user.as_mut_ptr());
        let room = TOKEN_USER_BYTES_MAX as u32;
        if GetTokenInformation(handle, TokenUser, place.cast(), room, &raw mut written) == 0 {
            return Err(io::Error::last_os_error());
        }
        if ConvertSidToStringSidW((*place.cast::<TOKEN_USER>()).User.Sid, &raw mut text) == 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: the system has written a text that ends in a null, which is freed once it was copied.
    let sid = unsafe {
        let length = (0..).take_while(|at| *text.add(*at) != 0).count();
        let sid = String::from_utf16_lossy(std::slice::from_raw_parts(text, length));
        LocalFree(text as HLOCAL);
        sid
    };
    Ok(sid)
}

fn wide(text: &std::ffi::OsStr) -> Vec<u16> {
    text.encode_wide().chain([0]).collect()
}

/// Neither is moved when somebody sets the time of day. `Instant` would not do: here it goes on in sleep.
pub(crate) fn clocks() -> Clocks {
    let mut awake_100ns: u64 = 0;
    // SAFETY: the place is this function's own.
    unsafe { QueryUnbiasedInterruptTime(&raw mut awake_100ns) };
    // SAFETY: the call takes and changes nothing.
    let always_ms = unsafe { GetTickCount64() };
    Clocks {
        awake: Duration::from_nanos(awake_100ns.saturating_mul(100)),
        always: Duration::from_millis(always_ms),
    }
}

/// Lets every other program have the processor first.
pub(crate) fn step_back() {
    // SAFETY: the handle is a constant that stands for this process; the call changes its priority alone.
    unsafe { SetPriorityClass(GetCurrentProcess(), IDLE_PRIORITY_CLASS) };
}

/// Lets go of a console that Windows made for this process alone and that shows what it says: a task at log-on would
/// leave a black window on the owner's desktop. The story is in the data directory all the same. Says whether it did.
pub(crate) fn leave_own_console() -> bool {
    let mut attached = [0; 2];
    // SAFETY: the list has room for the two that are told.
    let count = unsafe { GetConsoleProcessList(attached.as_mut_ptr(), 2) };
    if count != 1 || !io::IsTerminal::is_terminal(&io::stderr()) {
        return false;
    }
    // SAFETY: no reference to these handles is kept anywhere, the standard library asks for them each time.
    unsafe {
        for handle in [STD_INPUT_HANDLE, STD_OUTPUT_HANDLE, STD_ERROR_HANDLE] {
            SetStdHandle(handle, std::ptr::null_mut());
        }
        FreeConsole();
    }
    true
}
